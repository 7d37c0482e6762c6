"""One update's gradient does not depend on how its rows are cut, nor on what stands in the padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective
from quatrain.experiments.doctor.finding import Finding, judged, warning
from quatrain.experiments.doctor.patient import Patient
from quatrain.knobs import resolve
from quatrain.training.steps import Collect, Fit

WHOLE = 10**9  # positions in one micro-batch


@dataclass(frozen=True)
class Case:
    """A Fit (numbers resolved), its model, the models that it reads, and the rows it collected, before ``prepare``."""

    fit: Fit
    model: Any
    others: dict[str, Any]
    rows: Batch

    @property
    def name(self) -> str:
        return f"fit of {self.fit.model}"

    def gradient(self, tokens: int = WHOLE, rows: Batch | None = None) -> list[Tensor]:
        """Of one update on all rows, in micro-batches of that many positions. Weights and gradients are left as they were."""
        prepared = self.fit.loss.prepare(self.rows if rows is None else rows)
        step = replace(self.fit, micro_tokens=tokens)
        return _gathered(self.model, lambda: [None for _ in step.gradient_parts(self.model, self.others, prepared)])

    def shared_out(self, workers: int) -> list[Tensor]:
        """The same, each worker with every ``workers``-th row: the sum of their gradients."""
        loss = self.fit.loss
        batch = loss.prepare(self.rows)
        batch = loss.finalise(batch, loss.current(self.model, batch, self.others) if loss.live else None)
        active = batch.take(loss.active(batch))

        def work() -> None:
            for worker in range(workers):
                if len(part := active.take(torch.arange(worker, len(active), workers))):
                    loss.loss(self.model, part.trim(), self.others)[0].backward()

        return _gathered(self.model, work)


def check_collects(patient: Patient) -> Iterator[Finding]:
    """The recipe finds on this task what it collects: samples, demonstrations, pairs."""
    try:
        found = cases(patient)
    except QuatrainError:
        patient.recipe, patient.collected = None, []  # the rest is examined without it
        raise
    if patient.recipe is not None:
        sizes = ", ".join(f"{case.name} on {len(case.rows)} rows" for case in found)
        told = sizes or "no rows were collected"
        yield judged(
            bool(found), "recipe collects its data", told, "there is nothing to learn from", "look at the recipe's sources and edits"
        )


def cases(patient: Patient) -> list[Case]:
    """Every Fit of the recipe on rows that the recipe itself collects (with a stand-in reward for texts)."""
    if patient.collected is None:
        patient.collected = list(_collect(patient)) if patient.recipe else []
    return patient.collected


def _collect(patient: Patient) -> Iterator[Case]:
    state = patient.state()
    for stage in patient.recipe.stages:
        for step in stage.all_steps():
            if isinstance(step, Collect):
                step(state)
            elif isinstance(step, Fit) and len(state.stores.get(step.source, ())):
                step = resolve(step, state.knobs)
                others = {name: state.models[name] for name in step.loss.models()}
                yield Case(step, state.models[step.model], others, step.edited(state, state.stores[step.source]))


def check_cuts(patient: Patient) -> Iterator[Finding]:
    """Whole, row by row, and over two workers: the same gradient."""
    for case in cases(patient):
        whole = case.gradient()
        norm = _norm(whole)
        if norm == 0:
            yield warning(
                "gradient does not depend on the cut",
                f"{case.name}: the gradient is zero on {len(case.rows)} rows, so nothing can be compared",
                "on this batch nothing would be learnt, although its rewards differ",
                "look at the recipe's selection and advantage: quatrain explain; a group of one has no relative advantage",
            )
            continue
        longest = int(case.rows.present.sum(1).max())
        for what, cut in ((f"row by row ({len(case.rows)} rows)", case.gradient(1)), ("over two workers", case.shared_out(2))):
            yield same_gradient(patient, case, "gradient does not depend on the cut", f"{what}, rows up to {longest} long", whole, cut)


def check_padding(patient: Patient) -> Iterator[Finding]:
    """Garbage and NaN where there is padding change nothing."""
    for case in cases(patient):
        whole = case.gradient()
        soiled = case.gradient(rows=soil(case.rows, nan=isinstance(case.fit.loss, Objective)))
        yield same_gradient(patient, case, "padding is not read", "garbage in the padding of tokens and columns", whole, soiled)


def check_coefficients(patient: Patient) -> Iterator[Finding]:
    """Only actions have coefficients: not prompts, not tool output, not padding."""
    for case in cases(patient):
        loss = case.fit.loss
        if not isinstance(loss, Objective):
            continue
        rows, mask = with_tool_output(case.rows)
        with torch.no_grad():
            batch = loss.prepare(rows)
            batch = loss.finalise(batch, loss.current(case.model, batch, case.others) if loss.live else None)
            statistics = case.model.score(batch, loss.statistics(), others=case.others)
            terms = loss.estimate(batch, statistics).terms
        outside = sum(int((term.coefficient[~mask] != 0).sum()) for term in terms.values())
        yield judged(
            outside == 0,
            "only actions are learnt",
            f"{case.name}: {outside} coefficients outside of the mask, of {int((~mask).sum())} positions "
            f"({int((rows.present & ~mask).sum())} made tool output)",
            "what the policy did not choose (prompts, tool output, padding) would be trained on",
            "a term's selection lies within batch.mask: return torch.where(batch.mask, …, 0)",
        )


def with_tool_output(rows: Batch) -> tuple[Batch, Tensor]:
    """The rows with every fourth action made content that the policy did not choose; and the new mask."""
    fourth = (rows.mask.cumsum(1) % 4 == 2) & (rows.mask.sum(1, keepdim=True) > 3)
    mask = rows.mask & ~fourth
    return replace(rows, mask=mask, columns={**rows.columns, "present": rows.present | rows.mask}), mask


def soil(rows: Batch, nan: bool) -> Batch:
    """Other values wherever nothing is present: another valid action, NaN in columns of floats, garbage in integers.

    nan  put NaN also beyond the observations that were seen; without it large numbers (a critic computes them and drops them).
    """
    empty = ~(rows.present | rows.mask)
    generator = torch.Generator().manual_seed(1)

    def other(value: Tensor, where: Tensor, bad: float) -> Tensor:
        where = where.reshape(where.shape + (1,) * (value.ndim - 2)).expand(value.shape)
        if value.dtype == torch.bool:
            return value
        if value.is_floating_point():
            return value.masked_fill(where, bad)
        shuffled = value.flatten()[torch.randint(value.numel(), value.shape, generator=generator).to(value.device)]
        return torch.where(where, shuffled, value)

    changes = {name: other(value, empty, float("nan")) for name, value in rows.columns.items()}
    contexts = {}
    for role, part in rows.contexts.items():
        part = dict(part)
        if "tokens" in part and "mask" in part:
            part["tokens"] = other(part["tokens"], ~part["mask"], 0)
        if "observations" in part:
            beyond = torch.nn.functional.pad(empty, (1, 0), value=False) & torch.nn.functional.pad(empty, (0, 1), value=True)
            width = part["observations"].shape[1]
            part["observations"] = other(part["observations"], beyond[:, :width], float("nan") if nan else 1e3)
        contexts[role] = part
    return replace(rows, actions=other(rows.actions, empty, 1e3), columns=changes, contexts=contexts)


def same_gradient(patient: Patient, case: Case, check: str, how: str, one: list[Tensor], other: list[Tensor]) -> Finding:
    norm = _norm(one)
    gap = _norm([a - b for a, b in zip(one, other, strict=True)]) / max(norm, 1e-30)
    gap = float("inf") if gap != gap else gap
    scale = sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True)) / max(norm * norm, 1e-60)
    seen = f"{case.name}, {how}: relative difference {gap:.2g}, scale {scale:.3g}; allowed {patient.tolerance.gradient:g}"
    return judged(
        gap <= patient.tolerance.gradient,
        check,
        f"{seen} in {patient.tolerance.dtype}",
        "the size of the step then depends on memory, on the number of processes, or on chance, and not on the data alone",
        "compute normalisers once on the whole update (an aggregation), not per micro-batch; select with torch.where: NaN times 0 is NaN",
    )


def _gathered(model: Any, work: Any) -> list[Tensor]:
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = None
    work()
    found = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in trained]
    for parameter in trained:
        parameter.grad = None
    return found


def _norm(tensors: list[Tensor]) -> float:
    return sum(float(value.double().square().sum()) for value in tensors) ** 0.5
