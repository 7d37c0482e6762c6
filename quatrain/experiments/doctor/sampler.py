"""Sampler against scorer: the recorded log-probabilities, and the distribution that is really sampled from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.experiments.doctor.finding import Finding, judged
from quatrain.experiments.doctor.frequencies import Frequencies, action_frequencies, token_frequencies
from quatrain.experiments.doctor.patient import Patient
from quatrain.protocols import Sampling

PROBE = Sampling(temperature=0.7, top_p=0.9, max_actions=16)  # a second distribution, where a policy can be tempered and truncated
UNLIKELY = 1e-6  # chance of a false finding
WHY = "the ratio π/π_old is then not 1 before the first update: clipping and importance weights act on noise, and what is learnt is biased"
FIX = "record the log-probability of the distribution that is sampled from (after temperature, top-k and top-p), from the same weights"


def distributions(patient: Patient) -> list[Sampling]:
    """The run's own, and for language models another one that an evaluation or a later run may use."""
    return [patient.sampling, PROBE] if patient.is_text and patient.sampling != PROBE else [patient.sampling]


def check_ratio(patient: Patient) -> Iterator[Finding]:
    """Before the first update the ratio is 1 on every action."""
    for sampling in distributions(patient):
        batch = patient.batch if sampling is patient.sampling else patient.sample(sampling)
        for name in ("behaviour_logp", "old_logp"):
            if name in batch:
                yield ratio_finding(patient, batch, name, describe(sampling))
    if hasattr(patient.task, "steps") and not patient.is_text:
        living = patient.task.steps(patient.policy, 64, Sampling(patient.sampling.temperature), patient.seed)
        yield ratio_finding(patient, living, "behaviour_logp", "living episodes")


def ratio_finding(patient: Patient, batch: Batch, name: str, under: str, check: str = "ratio is 1") -> Finding:
    gap = gaps(batch[name], patient.logp(batch), batch.mask)
    allowed = patient.tolerance
    largest, mean = gap.max().item(), gap.mean().item()
    seen = (
        f"{name} against the scorer ({under}, {len(gap)} actions): gap at most {largest:.2g}, mean {mean:.2g} nats; "
        f"allowed {allowed.logp_max:g} and {allowed.logp_mean:g} in {allowed.dtype}"
    )
    return judged(largest <= allowed.logp_max and mean <= allowed.logp_mean, check, seen, WHY, FIX)


def gaps(recorded: Tensor, scored: Tensor, mask: Tensor) -> Tensor:
    """[M] |recorded − scored| at the actions; infinite where only one is finite or one is NaN."""
    one, other = recorded[mask].double(), scored[mask].double()
    gap = torch.where(one == other, 0.0, (one - other).abs())
    return torch.nan_to_num(gap, nan=float("inf")) if len(gap) else torch.zeros(1)


def check_distribution(patient: Patient) -> Iterator[Finding]:
    """Frequencies of thousands of draws in one state against the probabilities that the model's own forward gives."""
    for sampling in distributions(patient):
        found = token_frequencies(patient, sampling) if patient.is_text else action_frequencies(patient, sampling)
        if found is not None:
            yield frequency_finding(found, describe(sampling))


def frequency_finding(found: Frequencies, under: str) -> Finding:
    seen = (
        f"{found.draws} draws in one state ({under}): {found.test} p = {found.chance:.2g}"
        f", {found.outside} outside of the support; p below {UNLIKELY:g} or any outside is an error"
    )
    return judged(
        found.chance >= UNLIKELY and not found.outside,
        "distribution sampled from",
        seen,
        "actions come from another distribution than the run asks for: temperature, top-k or top-p do not arrive, or the weights differ",
        "apply temperature, then top-k, then top-p to the logits that the action is drawn from",
    )


def describe(sampling: Sampling) -> str:
    parts = [f"temperature {sampling.temperature:g}", f"top_p {sampling.top_p:g}"] + [f"top_k {sampling.top_k}"] * bool(sampling.top_k)
    return ", ".join(parts)
