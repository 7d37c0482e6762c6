"""What is known of each prompt's chance of success, across rounds: a Beta distribution and the last response, in the state's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch

MEMORY = "values"


def prior_strength(least: float) -> float:
    """N = 1/(1 − ρ_min): as many observations as a tracker holds that forgets fastest.

    >>> prior_strength(0.875)
    8.0
    """
    return 1 / (1 - least)


def forgetting(divergence: Tensor, half: float, least: float, most: float) -> Tensor:
    """ρ = clip(2^(−D/D_half), ρ_min, ρ_max): what a tracker keeps when its policy has moved by D.

    >>> forgetting(torch.tensor([0.0, 0.5, 1.0]), 0.5, 0.0, 0.75).tolist()
    [0.75, 0.5, 0.25]
    """
    return torch.pow(2.0, -divergence / half).clamp(least, most)


def recall(memory: Mapping[str, Any]) -> Batch | None:
    """One row per prompt met: keys ``prompt`` in ascending order, ``alpha``, ``beta``, and its last response to be scored again."""
    kept = memory.get(MEMORY)
    return Batch(**kept) if kept else None


def remember(memory: dict[str, Any], rows: Batch) -> None:
    """Put these rows (``prompt``, different in each, ``alpha``, ``beta``, columns and contexts) in place of their prompts' earlier ones."""
    known, rows = recall(memory), rows.to("cpu")
    if known is not None:
        rows = Batch.cat([known.take(~torch.isin(known["prompt"], rows["prompt"])), rows])
    rows = rows.take(torch.argsort(rows["prompt"]))
    contexts = {role: dict(part) for role, part in rows.contexts.items()}
    memory[MEMORY] = {
        "mask": rows.mask,
        "actions": rows.actions,
        "columns": dict(rows.columns),
        "rows": dict(rows.rows),
        "contexts": contexts,
    }


def places(known: Batch | None, prompts: Tensor) -> tuple[Tensor, Tensor]:
    """([M] which row of ``known`` each prompt is, [M] bool whether it is any)."""
    if known is None or not len(known):
        return torch.zeros_like(prompts), torch.zeros_like(prompts, dtype=torch.bool)
    keys = known["prompt"]
    place = torch.searchsorted(keys, prompts.contiguous()).clamp(max=len(keys) - 1)
    return place, keys[place] == prompts


def evidence(known: Batch | None, prompts: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(α, β), float64 [M], of prompts; half the prior strength each for one that was never met: its value is ½."""
    place, met = places(known, prompts)
    unmet = torch.full(prompts.shape, strength / 2, dtype=torch.float64)
    if known is None or not len(known):
        return unmet, unmet
    return torch.where(met, known["alpha"][place], unmet), torch.where(met, known["beta"][place], unmet)


def per_prompt(batch: Batch) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """(the last row of each prompt with its columns and contexts alone, [N] which of them each row has, how many rows, sum of rewards)."""
    prompts, index = torch.unique(batch["prompt"], return_inverse=True)
    count = torch.zeros(len(prompts), dtype=torch.float64, device=batch.device)
    wins = count.index_add(0, index, batch["reward"].double())
    last = torch.zeros_like(prompts, dtype=torch.long).scatter_reduce(0, index, torch.arange(len(batch), device=batch.device), "amax")
    bare = Batch(batch.mask, batch.actions, batch.columns, {"prompt": batch["prompt"]}, batch.contexts).take(last)
    return bare, index, count.index_add(0, index, torch.ones_like(wins[index])), wins
