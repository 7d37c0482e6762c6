"""How much memory a run takes, before it takes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quatrain.experiments.doctor.finding import Finding, error, ok, warning
from quatrain.experiments.doctor.patient import Patient

TIGHT = 0.8  # share of the free memory above which there is a warning


@dataclass(frozen=True)
class Estimate:
    """Bytes. ``weights`` (of all models) are there already; the moments are Adam's two."""

    weights: int
    gradients: int
    moments: int
    cache: int
    activations: int
    logits: int

    @property
    def to_come(self) -> int:
        return self.moments + max(self.cache, self.gradients + self.activations + self.logits)

    def __str__(self) -> str:
        parts = ("weights", "gradients", "moments", "cache", "activations", "logits")
        return ", ".join(f"{name} {human(getattr(self, name))}" for name in parts)


def estimate(patient: Patient) -> Estimate:
    """From shapes alone. Activations are those that a transformer layer keeps for its backward pass, attention without its square."""
    policy, models = patient.policy, {id(model): model for model in (patient.policy, *patient.models.values())}
    trained = [p for model in models.values() for p in model.module.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for model in models.values() for p in model.module.parameters())
    own = sum(p.numel() * p.element_size() for p in trained)
    rows = int(patient.knobs.get("prompts", 32)) * int(patient.source.group)
    if not hasattr(policy, "backbone"):
        steps = int(patient.knobs.get("segment", patient.sampling.max_actions))
        widths = sum(p.shape[0] for p in policy.module.parameters() if p.ndim == 2)
        return Estimate(weights, own, 2 * own, 0, 8 * widths * rows * steps, 0)
    config, size = policy.backbone.model.config.get_text_config(decoder=True), next(policy.module.parameters()).element_size()
    width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    head = getattr(config, "head_dim", None) or width // heads
    length = int(patient.batch.contexts["policy"]["mask"].sum(1).max()) + patient.sampling.max_actions
    cache = min(rows, policy.max_rows or rows) * length * layers * 2 * (getattr(config, "num_key_value_heads", None) or heads) * head * size
    tokens = min(int(patient.knobs.get("micro_tokens", 16384)), rows * length)
    kept = 2 * width if patient.settings.gradient_checkpointing else 8 * width + 4 * heads * head + 4 * inner
    logits = min(policy.chunk_elements, tokens * policy.backbone.vocabulary) * 4 * 4
    return Estimate(weights, own, 2 * own, cache * 3 // 2, tokens * (layers * kept + 4 * width) * size, logits)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on the device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = []
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found, default=None)


def check_memory(patient: Patient) -> Iterator[Finding]:
    device = next(patient.policy.module.parameters()).device
    need, free = estimate(patient), free_memory(device)
    seen = f"about {human(need.to_come)} more on {device} ({need}); {'unknown' if free is None else human(free)} free"
    tell: Any = error if free is not None and need.to_come > free else warning
    if free is not None and need.to_come > TIGHT * free:
        yield tell(
            "memory suffices",
            seen,
            "the run would be ended by the system, perhaps only when the first long batch comes",
            "smaller micro_tokens, lora=16, dtype=bfloat16, gradient_checkpointing=true, fewer prompts at a time",
        )
    else:
        yield ok("memory suffices", seen)


def human(size: float) -> str:
    """
    >>> human(3_000_000)
    '3.0 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
