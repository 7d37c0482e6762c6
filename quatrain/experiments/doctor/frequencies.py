"""Draws in one state, counted, against probabilities computed in another way than the sampler does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.experiments.doctor.patient import Patient
from quatrain.protocols import Sampling
from quatrain.seeds import derive

DRAWS = 2048
EXPECTED = 5.0  # cells with fewer expected draws are pooled: the usual rule for χ²


@dataclass(frozen=True)
class Frequencies:
    """chance: the p-value of the test named. outside: draws that have probability 0."""

    draws: int
    test: str
    chance: float
    outside: int


def allowed(logits: Tensor, sampling: Sampling, slack: float = 0.0) -> Tensor:
    """[V] bool: what may be sampled from logits [V], sorted and summed in float64: temperature, then top-k, then top-p + slack.

    >>> allowed(torch.tensor([0.5, 0.3, 0.2]).log(), Sampling(top_p=0.6)).tolist()
    [True, True, False]
    """
    z, order = (logits.double() / sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        z = z.masked_fill(z < z[min(sampling.top_k, len(z)) - 1], -torch.inf)
    p = z.softmax(-1)
    before = p.cumsum(-1) - p
    inside = (p > 0) & ((before < sampling.top_p + slack) | (sampling.top_p == 1))
    inside[0] = True
    return torch.zeros_like(inside).scatter(0, order, inside)


def compare(counts: Tensor, logits: Tensor, sampling: Sampling, borderline: float) -> Frequencies:
    """χ² of counts [V] against softmax(logits/T) on the support. What is borderline for the support is left out of both."""
    from scipy.stats import chisquare

    surely, maybe = allowed(logits, sampling, -borderline), allowed(logits, sampling, borderline)
    outside = int(counts[~maybe].sum())
    p = (logits.double() / sampling.temperature).masked_fill(~surely, -torch.inf).softmax(-1)[surely]
    seen = counts[surely].double()
    expected = p * seen.sum()
    rare = expected < EXPECTED
    if rare.any():
        pooled = [torch.stack([value[rare].sum()]) for value in (seen, expected)]
        seen, expected = (torch.cat([value[~rare], more]) for value, more in zip((seen, expected), pooled, strict=True))
    cells = expected > 0
    seen, expected = seen[cells], expected[cells]
    chance = float(chisquare(seen.numpy(), (expected * seen.sum() / expected.sum()).numpy()).pvalue) if len(seen) > 1 else 1.0
    return Frequencies(int(counts.sum()), f"χ² over {len(seen)} cells", chance, outside)


def telling(logits: Tensor) -> Tensor:
    """[M] variance of log π(a) under π for logits [M, V]: how much a wrong temperature would show. 0 if uniform or certain.

    >>> [round(float(value), 2) for value in telling(torch.tensor([[0.0, 0.0], [1.0, 0.0], [50.0, 0.0]]))]
    [0.0, 0.2, 0.0]
    """
    log_p = logits.double().log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1, keepdim=True)
    return (log_p.exp() * (log_p - mean).square()).sum(-1)


@torch.no_grad()
def token_frequencies(patient: Patient, sampling: Sampling) -> Frequencies | None:
    """Next tokens after the most telling prefix of a few trajectories, against the model's plain forward on that prefix alone."""
    if sampling.temperature == 0:
        return None
    policy = patient.policy
    prefix, logits = telling_prefix(policy, patient.batch)
    seeds = torch.arange(DRAWS, dtype=torch.int64) + derive(patient.seed, "draws") % 2**40
    drawn = policy.sample([prefix], DRAWS, replace(sampling, max_actions=1, stop=()), seeds)
    counts = torch.bincount(drawn.actions[:, 0].cpu(), minlength=len(logits))
    return compare(counts, logits, sampling, patient.tolerance.borderline)


def telling_prefix(policy: Any, batch: Batch, rows: int = 8) -> tuple[list[int], Tensor]:
    """(token ids, logits [V] of what comes next), among the prefixes of a few trajectories."""
    best: tuple[float, list[int]] = (-1.0, [])
    context = batch.contexts["policy"]
    for row in torch.linspace(0, len(batch) - 1, min(rows, len(batch))).long().unique().tolist():
        prompt = context["tokens"][row][context["mask"][row]].tolist()
        tokens = [*prompt, *batch.actions[row][batch.mask[row]].tolist()]
        tells = telling(_forward(policy, tokens)[len(prompt) - 1 : -1])
        if len(tells) and float(tells.max()) > best[0]:
            best = float(tells.max()), tokens[: len(prompt) + int(tells.argmax())]
    return best[1], _forward(policy, best[1])[-1].float().cpu()


def _forward(policy: Any, tokens: list[int]) -> Tensor:
    """[L, V] logits of the module's own forward."""
    policy.module.eval()
    return policy.module(input_ids=torch.tensor([tokens], device=policy.device), use_cache=False).logits[0]


@torch.no_grad()
def action_frequencies(patient: Patient, sampling: Sampling) -> Frequencies | None:
    """Actions at the most telling observation, against the distribution that the policy gives there."""
    from scipy.stats import kstest, norm

    policy, temperature = patient.policy, sampling.temperature
    if not hasattr(policy, "act") or not hasattr(policy, "distribution"):
        return None
    seen = patient.batch.contexts["policy"]["observations"][:, :-1][patient.batch.mask]
    all_of_them = policy.distribution(seen)
    if hasattr(all_of_them, "mean"):
        here, one = seen[:1], policy.distribution(seen[:1])
    else:
        place = int(telling(all_of_them.z).argmax())
        here, one = seen[place : place + 1], policy.distribution(seen[place : place + 1])
    generator = torch.Generator().manual_seed(patient.seed)
    actions, _ = policy.act(here.expand(DRAWS, -1), generator, temperature=temperature)
    if hasattr(one, "mean"):
        z = ((actions - one.mean) / one.std).double().cpu().numpy()
        chance = min(1.0, min(float(kstest(z[:, d], norm.cdf).pvalue) for d in range(z.shape[1])) * z.shape[1])
        return Frequencies(DRAWS, f"Kolmogorov–Smirnov in {z.shape[1]} dimensions", chance, 0)
    logits = one.z[0].cpu()
    return compare(torch.bincount(actions.cpu(), minlength=len(logits)), logits, sampling, patient.tolerance.borderline)
