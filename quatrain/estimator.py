"""The equation: an objective is a sum of terms, a term is a detached coefficient times a differentiable statistic.

    loss = − Σ_terms Σ_t c_t · ℓ_t,     c_t = bound(π_num/π_den) · A_t · aggregation_t · weight      where selected, else 0

A batch goes through three steps, so that any split into micro-batches or workers gives the same gradient:

    prepare   once on what was collected: selections, advantages and weights that do not look at the current policy
    finalise  once on the rows of one update: what does look at it (``live``), and the normalisers
    estimate  on each micro-batch: ratio, bound, coefficient, loss

Nothing is multiplied by a mask: 0·inf is NaN. Values that are not selected are replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from quatrain.batch import Batch, missing, spread
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import one
from quatrain.parts.aggregations import token_mean
from quatrain.parts.bounds import unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.guides import guide_column, guides_of
from quatrain.parts.likelihoods import Candidates, CriticAlong, Entropy, LogProb
from quatrain.parts.needs import is_live, is_pass_needed, needs_of
from quatrain.parts.selections import every_action
from quatrain.protocols import Policy, Statistic

# What a part may read of the policy being trained, and the statistic that it is.
CURRENT: dict[str, Statistic] = {
    "current_logp": LogProb(),
    "current_entropy": Entropy(),
    "current_top_logp": Candidates(1),
    "current_q": CriticAlong(),
}


@dataclass(frozen=True)
class Term:
    """One quatrain: mask (``where`` and ``bound``), denominator, advantage, likelihood; and how it is averaged and weighed.

    advantage    batch → [N] or [N, T], signed.
    denominator  batch → log-ratio [N, T].
    bound        (log-ratio, advantage, batch) → factor [N, T]: the ratio as it is used.
    likelihood   the statistic that is differentiated.
    where        batch → bool [N, T]: selection, inside the mean.
    aggregation  (batch, where) → [N, T]: the normaliser.
    weight       everything else: a number, or batch → [N] or [N, T]. It may read ``current_…`` columns action by action.

    → REINFORCE with advantage = return, everything else as it stands; → supervised fine-tuning with nothing given.
    """

    advantage: Callable[[Batch], Tensor] = one
    denominator: Callable[[Batch], Tensor] = Ratio()
    bound: Callable[[Tensor, Tensor, Batch], Tensor] = unbounded
    likelihood: Statistic = LogProb()
    where: Callable[[Batch], Tensor] = every_action
    aggregation: Callable[[Batch, Tensor], Tensor] = token_mean
    weight: float | Callable[[Batch], Tensor] = 1.0

    @property
    def live(self) -> bool:
        """Does it need the current policy's columns before any micro-batch is estimated: of other rows, or for the normaliser?"""
        whole = (self.advantage, *guides_of(self.bound), *guides_of(self.weight))
        return any(map(is_pass_needed, whole)) or is_live(self.where) or is_live(self.aggregation)

    def needs(self) -> Iterator[tuple[str, str]]:
        """(field, column) for every column that a part of it reads."""
        for part in fields(self):
            if part.name != "likelihood":
                for name in needs_of(getattr(self, part.name)):
                    yield part.name, name


@dataclass(frozen=True)
class TermEstimate:
    """Every intermediate of one term, [N, T] each and detached, except ``statistic``. ``weighs``: its ratio is one to another policy."""

    where: Tensor
    log_ratio: Tensor
    advantage: Tensor
    factor: Tensor
    coefficient: Tensor
    statistic: Tensor
    weighs: bool


@dataclass(frozen=True)
class Estimate:
    """The loss (a scalar with gradient) and every intermediate of every term."""

    loss: Tensor
    terms: Mapping[str, TermEstimate]

    @torch.no_grad()
    def measures(self) -> dict[str, Measure]:
        """What is worth watching: the loss, per term the sum of the coefficients' sizes; the ratio and what the bound took."""
        found: dict[str, Measure] = {"loss": (self.loss.detach(), None)}
        for name, term in self.terms.items():
            found[f"{name}/coefficient"] = (term.coefficient.abs().sum(), None)
            signal = term.where & (term.advantage != 0)
            if term.weighs:
                ratio = term.log_ratio.exp()
                found["ratio"] = _mean(ratio, term.where)
                found["ratio/max"] = (torch.where(term.where, ratio, 0.0).max(), 1.0)
                found["kl"] = _mean(ratio - 1 - term.log_ratio, term.where)
                found["clipped"] = _mean((term.factor == 0).to(ratio.dtype), signal)
        return found


# (total, count); a count of None: the parts of one update add up to its value. A name that ends in "/max" is a maximum.
Measure = tuple[Tensor, Tensor | float | None]


class NonFiniteError(QuatrainError):
    """A coefficient or a loss that is not a number: the update is skipped and counted."""


@dataclass(frozen=True)
class Objective:
    """Named terms whose sum is ascended."""

    terms: Mapping[str, Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.terms:
            raise QuatrainError("an objective has at least one term", fix="Objective({'policy': Term(advantage=…)})")

    def needs(self) -> set[str]:
        """Columns and rows that its parts read, but for those of the current policy."""
        return {column for term in self.terms.values() for _, column in term.needs() if column not in CURRENT}

    def models(self) -> set[str]:
        """Other models whose distributions its statistics read."""
        return {name for term in self.terms.values() for name in term.likelihood.needs}

    def statistics(self) -> list[Statistic]:
        """What the policy has to be scored for: the likelihoods, and the current columns that parts read."""
        wanted = [CURRENT[column] for term in self.terms.values() for _, column in term.needs() if column in CURRENT]
        return list(dict.fromkeys([*(term.likelihood for term in self.terms.values()), *wanted]))

    @property
    def live(self) -> bool:
        return any(term.live for term in self.terms.values())

    def check(self, provided: set[str]) -> None:
        """Refuse a part that reads a column nobody provides, naming the line."""
        for name, term in self.terms.items():
            for part, column in term.needs():
                if column not in provided and column not in CURRENT:
                    raise missing(column, provided, f"the {part} of term {name!r} ({getattr(term, part)!r})")

    # -- the three steps -------------------------------------------------------------------------------------------
    def prepare(self, batch: Batch) -> Batch:
        """Add each term's static selection, advantage and weight as columns ``{term}/where`` …, and its advantage's guides: once."""
        added = {}
        for name, term in self.terms.items():
            for part in ("where", "advantage", "weight"):
                value = getattr(term, part)
                if not is_live(value):
                    added[f"{name}/{part}"] = _part(name, term, part, batch)
            added |= {guide_column(guide): spread(guide(batch), batch) for guide in guides_of(term.advantage)}
        return batch.with_columns(**added)

    def finalise(self, batch: Batch, current: Mapping[Statistic, Tensor] | None = None) -> Batch:
        """Add the live parts, the guides of bounds and weights and the normalisers ``{term}/aggregation`` on the rows of one update.

        batch    the rows of one update, prepared.
        current  the statistics of the current policy on these rows; needed only if the objective is ``live``.
        """
        seen = _with_current(batch, current)
        added = {}
        for name, term in self.terms.items():
            if is_live(term.where):
                added[f"{name}/where"] = _part(name, term, "where", seen)
            if is_pass_needed(term.advantage):
                added[f"{name}/advantage"] = _part(name, term, "advantage", seen)
            where = added.get(f"{name}/where", batch.columns.get(f"{name}/where"))
            added[f"{name}/aggregation"] = term.aggregation(seen, where)
            guides = dict.fromkeys((*guides_of(term.bound), *guides_of(term.weight)))
            added |= {guide_column(guide): spread(guide(seen), batch) for guide in guides}
        return batch.with_columns(**added)

    def active(self, batch: Batch) -> Tensor:
        """[N] bool: rows of a finalised batch with a coefficient that may differ from zero. The others need no forward."""
        active = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
        for name in self.terms:
            here = batch[f"{name}/where"]
            for part in ("advantage", "weight"):
                if f"{name}/{part}" in batch:
                    here = here & (batch[f"{name}/{part}"] != 0)
            active |= here.any(1)
        return active

    def estimate(self, batch: Batch, statistics: Mapping[Statistic, Tensor]) -> Estimate:
        """Loss and intermediates on rows of a finalised batch.

        Raises NonFiniteError, naming the term, if a selected coefficient or the loss is not finite.
        """
        batch = _with_current(batch, statistics)
        loss, terms = torch.zeros((), device=batch.device), {}
        for name, term in self.terms.items():
            statistic = statistics[term.likelihood]
            with torch.no_grad():
                where = batch[f"{name}/where"]
                advantage, weight = (
                    batch[f"{name}/{part}"] if f"{name}/{part}" in batch else _part(name, term, part, batch)
                    for part in ("advantage", "weight")
                )
                log_ratio = term.denominator(batch)
                factor = term.bound(log_ratio, advantage, batch)
                full = factor * advantage * batch[f"{name}/aggregation"] * weight
                coefficient = torch.where(where & (advantage != 0) & (weight != 0), full, 0.0).to(statistic.dtype)
                if not torch.isfinite(coefficient).all():
                    raise NonFiniteError(
                        f"term {name!r} has a coefficient that is not finite",
                        given=_culprit(log_ratio, advantage, factor, where),
                        fix="bound the ratio (Clip has dual=…), lower the learning rate, or check the column with quatrain explain",
                    )
            loss = loss - torch.where(coefficient != 0, coefficient * statistic, 0.0).sum()
            weighs = any(not column.startswith("current_") for column in needs_of(term.denominator))
            terms[name] = TermEstimate(where, log_ratio, advantage, factor, coefficient, statistic, weighs)
        if not torch.isfinite(loss):
            raise NonFiniteError(
                "the loss is not finite", given=loss.item(), fix="a selected action has probability 0 or NaN under the current policy"
            )
        return Estimate(loss, terms)

    def __call__(self, batch: Batch, statistics: Mapping[Statistic, Tensor]) -> Estimate:
        """The three steps on one whole batch."""
        detached = {statistic: value.detach() for statistic, value in statistics.items()}
        return self.estimate(self.finalise(self.prepare(batch), detached), statistics)

    # -- as the loss of a Fit --------------------------------------------------------------------------------------
    def current(self, policy: Policy, batch: Batch, others: Mapping[str, Policy]) -> dict[Statistic, Tensor]:
        """The statistics that live parts read, without gradient."""
        read = {CURRENT[column] for term in self.terms.values() for _, column in term.needs() if column in CURRENT}
        if not read:  # live by columns that came with the rows of the update
            return {}
        with torch.no_grad():
            return policy.score(batch, sorted(read, key=repr), others=others)

    def loss(self, policy: Policy, batch: Batch, others: Mapping[str, Policy]) -> tuple[Tensor, dict[str, Measure]]:
        """(loss with gradient, measures) on rows of a finalised batch."""
        estimate = self.estimate(batch, policy.score(batch, self.statistics(), others=others))
        return estimate.loss, estimate.measures()


def _part(name: str, term: Term, part: str, batch: Batch) -> Tensor:
    """A part's value as [N, T]; a selection only within the mask."""
    function = getattr(term, part)
    if part == "weight" and not callable(function):
        return torch.full(batch.shape, float(function), device=batch.device, dtype=torch.float64)
    value = function(batch)
    if value.shape[0] != len(batch) or value.ndim > 2 or (value.ndim == 2 and value.shape[1] != batch.shape[1]):
        raise QuatrainError(
            f"the {part} of term {name!r} has the wrong shape", given=tuple(value.shape), expected=f"[N] or [N, T] = {batch.shape}"
        )
    value = spread(value, batch)
    return value & batch.mask if part == "where" else value


def _with_current(batch: Batch, statistics: Mapping[Statistic, Tensor] | None) -> Batch:
    known = {name: statistics[statistic].detach() for name, statistic in CURRENT.items() if statistics and statistic in statistics}
    return batch.with_columns(**known)


def _mean(value: Tensor, where: Tensor) -> Measure:
    return torch.where(where, value.detach(), 0.0).sum(), where.sum()


def _culprit(log_ratio: Tensor, advantage: Tensor, factor: Tensor, where: Tensor) -> str:
    """Which of the pieces is not finite, or how large they are."""
    report = []
    for label, value in (("advantage", advantage), ("log-ratio", log_ratio), ("bounded ratio", factor)):
        chosen = value[where]
        bad = int((~torch.isfinite(chosen)).sum())
        largest = float(chosen.nan_to_num(0.0, 0.0, 0.0).abs().max()) if chosen.numel() else 0.0
        report.append(f"{label}: {bad} of {chosen.numel()} not finite, otherwise at most {largest:.3g}")
    return "; ".join(report)
