"""A recipe's estimator against the exact gradient of what it claims to ascend: bias, direction, variance, signal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from quatrain.experiments.diagnose.expectation import Moments, moments
from quatrain.experiments.diagnose.problems import Problem
from quatrain.experiments.diagnose.subject import Subject, make_subject
from quatrain.experiments.diagnose.targets import Scene, Target, exact_gradient
from quatrain.protocols import Sampling
from quatrain.training.recipe import Recipe

STEP = 0.03  # length of one update in the staleness sweep, in units of the policy's logits
ZERO = 1e-9  # relative to the exact gradient; below it a bias is rounding


@dataclass(frozen=True)
class Setting:
    """Where a recipe is looked at: draws per batch (None: its own), updates since the batch was sampled, the distribution."""

    draws: int | None = None
    staleness: int = 0
    temperature: float = 1.0
    top_p: float = 1.0

    def scene(self, problem: Problem, recipe: Recipe) -> Scene:
        sampling = Sampling(self.temperature, self.top_p, 0, problem.longest)
        fresh = Scene(problem, sampling, problem.table, problem.table)
        return replace(fresh, older=walked_back(fresh, make_subject(recipe, fresh).targets(), self.staleness))


PLAIN = Setting()


@dataclass(frozen=True)
class Against:
    """An expected gradient m against an exact one g.

    bias    |m − g|/|g|, corrected for the error of a sampled m;  error: its standard error, 0 where m is exact.
    scale   ⟨m, g⟩/|g|²: what g is multiplied by.   cosine: of the angle between them.
    """

    bias: float
    error: float
    scale: float
    cosine: float


@dataclass(frozen=True)
class Judgement:
    """One recipe at one setting of one problem.

    total     the whole estimator against its target; None where a term's weight depends on the batch: then no sum is claimed.
    terms     term → (what it claims, against it).
    variance  tr Cov[ĝ] of one batch;  noise: tr Cov·tokens/|E ĝ|², the relative variance that one sampled token buys.
    signal    ⟨E ĝ, g⟩²/|g|²/(tr Cov·tokens), signed: squared signal-to-noise along the exact gradient per sampled token.
    """

    recipe: str
    problem: str
    setting: Setting
    target: str
    total: Against | None
    terms: Mapping[str, tuple[str, Against]]
    variance: float
    noise: float
    signal: float
    tokens: float
    draws: int
    how: str
    mean: Tensor = field(repr=False, compare=False)
    exact: Tensor = field(repr=False, compare=False)

    @property
    def main(self) -> Against:
        """The total, or where there is none the policy's (else the first) term."""
        return self.total or self.terms.get("policy", next(iter(self.terms.values())))[1]

    def data(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        against = lambda found: None if found is None else {key: _plain(value) for key, value in vars(found).items()}  # noqa: E731
        numbers = {name: _plain(getattr(self, name)) for name in ("variance", "noise", "signal", "tokens")}
        terms = {name: {"target": target, **against(found)} for name, (target, found) in self.terms.items()}
        where = {"recipe": self.recipe, "problem": self.problem, "target": self.target, **vars(self.setting), "draws": self.draws}
        return {**where, **(against(self.main) or {}), **numbers, "how": self.how, "terms": terms, "summed": self.total is not None}


def judge(recipe: Recipe, problem: Problem, setting: Setting = PLAIN, seed: int = 0, name: str = "", **budget: int) -> Judgement:
    """The estimator's exact (or sampled) expectation against the exact gradient. ``budget``: as in ``moments``."""
    scene = setting.scene(problem, recipe)
    return judge_subject(make_subject(recipe, scene, setting.draws), setting, seed, name or recipe.name or "recipe", **budget)


def judge_subject(subject: Subject, setting: Setting, seed: int = 0, name: str = "recipe", **budget: int) -> Judgement:
    found = moments(subject, seed, **budget)
    targets = subject.targets()
    exact = exact_gradient(subject.scene, targets).flatten()
    numeric = bool(subject.recipe.target) or all(isinstance(term.weight, (int, float)) for term in subject.fit.loss.terms.values())
    terms = {}
    for term, target in subject.term_targets().items():
        alone = exact_gradient(subject.scene, [target]).flatten()
        terms[term] = (str(target), against(found.terms[term], alone, found.errors.get(term)))
    main = exact if numeric else exact_gradient(subject.scene, [_main(subject)]).flatten()
    signal, noise = signal_of(found, main)
    return Judgement(
        name,
        subject.scene.problem.name,
        setting,
        described(targets) if numeric else "; ".join(f"{term}: {target}" for term, (target, _) in terms.items()),
        against(found.mean, exact, found.error) if numeric else None,
        terms,
        found.variance,
        noise,
        signal,
        found.tokens,
        subject.draws,
        found.how,
        found.mean,
        main,
    )


def against(mean: Tensor, exact: Tensor, error: Tensor | None) -> Against:
    """Undefined numbers (the exact gradient is 0) are NaN."""
    size, length = float(exact.norm()), float(mean.norm())
    slack = 0.0 if error is None else float(error.norm())
    gap = math.sqrt(max(0.0, float((mean - exact).square().sum()) - slack**2))
    if size == 0:
        return Against(math.nan, math.nan, math.nan, math.nan)
    dot = float(mean @ exact)
    return Against(gap / size, slack / size, dot / size**2, dot / (length * size) if length > 1e-14 * size else math.nan)


def signal_of(found: Moments, exact: Tensor) -> tuple[float, float]:
    """(signal per sampled token, noise). Without variance the signal is infinite; without a gradient it is 0."""
    size, along = float(found.mean.norm()), float(found.mean @ exact) / max(float(exact.norm()), 1e-300)
    cost = found.variance * found.tokens
    if size < 1e-14:
        return 0.0, math.inf if cost > 0 else math.nan
    if cost < 1e-14 * size**2:
        return math.copysign(math.inf, along), 0.0
    return math.copysign(along**2 / cost, along), cost / size**2


def walked_back(scene: Scene, targets: list[Target], updates: int) -> Tensor:
    """The policy that many updates of length STEP ago: down the exact gradient from the present one."""
    table = scene.table.clone()
    for _ in range(updates):
        gradient = exact_gradient(replace(scene, table=table, older=table), targets)
        table = table - STEP * gradient / gradient.norm().clamp(min=1e-300)
    return table


def described(targets: list[Target]) -> str:
    """``reward − 0.04·KL to the reference``."""
    text = " + ".join(map(str, targets)).replace("+ −", "− ")
    return text


def _main(subject: Subject) -> Target:
    claims = subject.term_targets()
    return claims.get("policy", next(iter(claims.values())))


def _plain(value: float) -> float | str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return value
