"""After weights were copied, saved or changed, everybody computes with the new ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from quatrain.experiments.doctor.finding import Finding, judged, ok
from quatrain.experiments.doctor.patient import Patient, fingerprint
from quatrain.experiments.doctor.sampler import gaps, ratio_finding

WHY = "whoever reads that copy (a reference, a teacher, a sampler, the final model) works with other weights than those that were trained"


def check_clone(patient: Patient) -> Iterator[Finding]:
    """``clone``: the same checksum of every tensor, and the same log-probabilities."""
    with changed(patient):  # a copy of the initial weights would pass for one of the present ones
        twin = patient.policy.clone()
        yield _compare(patient, twin, "a copy (clone)", "copy all parameters and buffers, at the time of the call", "all")


def check_saved(patient: Patient) -> Iterator[Finding]:
    """``save`` and load again in the run's dtype."""
    size = sum(value.numel() * value.element_size() for value in patient.policy.module.state_dict().values())
    with tempfile.TemporaryDirectory(prefix="quatrain-doctor-") as folder:
        if shutil.disk_usage(folder).free < 4 * size:
            yield ok("weights arrive", f"saving was not tried: {size / 1e9:.1f} GB, and too little room in {Path(folder).parent}")
            return
        with changed(patient):
            patient.policy.save(Path(folder) / "model")
            twin = _load(patient, Path(folder) / "model")
            adapters = hasattr(patient.policy.module, "peft_config")  # merged into the weights: other names, and rounded once
            yield _compare(
                patient, twin, "a saved and loaded copy", "save what is trained, in its own dtype", "none" if adapters else "saved"
            )


def check_sampler_follows(patient: Patient) -> Iterator[Finding]:
    """After the weights have moved, the sampler's log-probabilities are those of the new ones."""
    with changed(patient):
        moved = patient.sample(patient.sampling, name="moved")
        yield ratio_finding(patient, moved, "behaviour_logp", "after the weights were moved", "sampler has the new weights")


def _load(patient: Patient, folder: Path) -> Any:
    if not hasattr(patient.policy, "tokenizer"):
        from quatrain.models.networks import load_network

        return load_network(folder)
    from quatrain.models.loading import load_causal_lm

    dtype = {torch.float32: "float32", torch.bfloat16: "bfloat16"}.get(next(patient.policy.module.parameters()).dtype, "auto")
    return load_causal_lm(folder, dtype=dtype, device=str(patient.policy.device))


def _compare(patient: Patient, twin: Any, what: str, fix: str, checksums: Literal["all", "saved", "none"]) -> Finding:
    told, same = [], True
    if checksums != "none":
        mine, other = (fingerprint(policy.module, checksums == "saved") for policy in (patient.policy, twin))
        different = [name for name in mine if other.get(name) != mine[name]]
        same = not different
        told.append(f"{len(mine) - len(different)} of {len(mine)} tensors have the same checksum")
        if different:
            told[-1] += f" (not {different[0]})"
    gap = gaps(patient.logp(patient.batch), patient.logp(patient.batch, twin), patient.batch.mask).max().item()
    told.append(f"log-probabilities differ by at most {gap:.2g} nats; allowed {patient.tolerance.logp_max:g}")
    return judged(same and gap <= patient.tolerance.logp_max, "weights arrive", f"{what}: {', '.join(told)}", WHY, fix)


class changed:
    """A context in which the trained weights are others: noise is added until the scorer notices; afterwards they are back, bit for bit."""

    def __init__(self, patient: Patient):
        self.patient = patient
        self.trained = [parameter for parameter in patient.policy.module.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def __enter__(self) -> float:
        self.kept: list[Tensor] = [parameter.detach().clone() for parameter in self.trained]
        before, size = self.patient.logp(self.patient.batch), 0.02
        for attempt in range(6):
            generator = torch.Generator().manual_seed(self.patient.seed + attempt)
            for parameter, old in zip(self.trained, self.kept, strict=True):
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(old + size * (old.float().square().mean().sqrt() + 0.02).to(old.dtype) * noise)
            moved = gaps(self.patient.logp(self.patient.batch), before, self.patient.batch.mask).mean().item()
            if moved > 4 * self.patient.tolerance.logp_mean and moved > 0.02:
                break
            size *= 3
        return moved

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        for parameter, old in zip(self.trained, self.kept, strict=True):
            parameter.copy_(old)
