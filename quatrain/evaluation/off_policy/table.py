"""Every estimator of several policies at once, side by side: what ``Measure`` leaves of logged data.

Axes: N trajectories, T actions, K policies, S rows, V actions, M grid points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.evaluation.off_policy.cumulative import Summary, doubly_robust_cdf, importance_cdf, summary
from quatrain.evaluation.off_policy.estimators import (
    corrected,
    direct,
    doubly_robust,
    folds,
    marginal_corrected,
    per_decision,
    trajectory_wise,
    weighted,
)
from quatrain.evaluation.off_policy.intervals import find_interval
from quatrain.evaluation.off_policy.ratios import action_ratio, cumulative, spectrum
from quatrain.evaluation.off_policy.selection import portfolio, rank_correlation, regret, squared_error, wrong_calls
from quatrain.evaluation.off_policy.tabular import count, marginal_ratios, tabular_values
from quatrain.evaluation.statistics import Interval
from quatrain.parts.advantages import action_rewards


@dataclass(frozen=True)
class Logs:
    """Logged trajectories of numbered states. states [N, T+1]; actions, rewards, behaviour_logp, ended, mask [N, T]; shape (S, V).

    Rewards are 0 where there is no action.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    behaviour_logp: Tensor
    ended: Tensor
    mask: Tensor
    shape: tuple[int, int]

    @staticmethod
    def of(batch: Batch, shape: tuple[int, int]) -> Logs:
        rewards, ended = action_rewards(batch)
        states = batch.contexts["policy"]["states"][:, : batch.shape[1] + 1]
        rewards = torch.where(batch.mask, rewards, 0.0).double()
        return Logs(states, batch.actions, rewards, batch["behaviour_logp"].double(), ended, batch.mask, shape)

    def take(self, index: Tensor) -> Logs:
        parts = (self.states, self.actions, self.rewards, self.behaviour_logp, self.ended, self.mask)
        return Logs(*(part[index] for part in parts), self.shape)


def at_actions(table: Tensor, logs: Logs) -> Tensor:
    """A table [S, V] at the logged pairs, [N, T]; 0 where there is no action."""
    return torch.where(logs.mask, table[logs.states[:, :-1], logs.actions], 0.0)


def at_states(table: Tensor, logs: Logs) -> Tensor:
    """A table [S] at the logged states, [N, T]; 0 where there is no action."""
    return torch.where(logs.mask, table[logs.states[:, :-1]], 0.0)


def contributions(logs: Logs, policy: Tensor, q: Tensor, discount: float = 1.0, window: int = 2) -> dict[str, Tensor]:
    """Estimator → [N] contributions to the value of one policy [S, V], with the action values q [S, V].

    Marginal ratios are tabular; for double reinforcement learning (``drl``) both they and its values are those of the other half of the
    data. window: SOPE's k.
    """
    policy, q = policy.double(), q.double()
    ratio = action_ratio(at_actions(policy, logs).clamp(min=1e-300).log(), logs.behaviour_logp, logs.mask)
    rewards, own = logs.rewards, {"discount": discount}
    values = {"q": at_actions(q, logs), "v": at_states((policy * q).sum(-1), logs)}
    pair, state = _marginal(logs, logs, policy, discount)
    state = state * ratio
    found = {
        "dm": direct(values["v"]),
        "tis": trajectory_wise(ratio, rewards, **own),
        "pdis": per_decision(ratio, rewards, **own),
        "dr": doubly_robust(ratio, rewards, **values, **own),
        "sn-tis": trajectory_wise(ratio, rewards, normalise=True, **own),
        "sn-pdis": per_decision(ratio, rewards, normalise=True, **own),
        "sn-dr": doubly_robust(ratio, rewards, **values, normalise=True, **own),
        "sm-is": weighted(state, rewards, **own),
        "sm-dr": marginal_corrected(state, rewards, **values, **own),
        "sam-is": weighted(pair, rewards, **own),
        "sam-dr": marginal_corrected(pair, rewards, **values, **own),
        "sm-snis": weighted(state, rewards, normalise=True, **own),
        "sam-snis": weighted(pair, rewards, normalise=True, **own),
        "sam-sndr": marginal_corrected(pair, rewards, **values, normalise=True, **own),
        "sope": weighted(spectrum(ratio, pair, window), rewards, **own),
        "drl": torch.zeros_like(rewards[:, 0]),
    }
    half = folds(len(rewards), 2)
    for part in (0, 1):
        here, there = logs.take(half == part), logs.take(half != part)
        other = tabular_values(_count(there, discount), policy[None], discount)[0]
        weight, _ = _marginal(here, there, policy, discount)
        v = at_states((policy * other).sum(-1), here)
        found["drl"][half == part] = corrected(weight, here.rewards, at_actions(other, here), v, discount)
    return found


def distributions(logs: Logs, policy: Tensor, q: Tensor, grid: Tensor, width: float = 0.0) -> dict[str, Tensor]:
    """Estimator → F̂ [M] of the undiscounted return of one policy [S, V], as estimated: ``summary`` makes CDFs of them.

    The model of ``tdr`` is a normal distribution about q(s_0, a_0) [S, V] with standard deviation ``width``; 0 is a
    step there (the library's code has one step for all actions, at V̂(s_0)).
    """
    policy, q = policy.double(), q.double()
    ratio = action_ratio(at_actions(policy, logs).clamp(min=1e-300).log(), logs.behaviour_logp, logs.mask)
    weight, returns, first = cumulative(ratio)[:, -1], logs.rewards.sum(1), logs.states[:, 0]
    gap = grid - q[first][..., None]  # [N, V, M]
    model = (gap / width / 2**0.5).erf() / 2 + 0.5 if width else (gap >= 0).double()
    expected = (policy[first][..., None] * model).sum(1)
    model = model[torch.arange(len(first)), logs.actions[:, 0]]
    return {
        "dm": expected.mean(0),
        "tis": importance_cdf(weight, returns, grid),
        "tdr": doubly_robust_cdf(weight, returns, grid, model, expected),
        "sn-tis": importance_cdf(weight, returns, grid, normalise=True),
        "sn-tdr": doubly_robust_cdf(weight, returns, grid, model, expected, normalise=True),
    }


def choice(estimates: Tensor, true: Tensor, baseline: float, k: int) -> dict[str, float]:
    """What choosing by estimates [K] is worth, judged by the true values [K]; the threshold of good is the behaviour policy's value."""
    picked = portfolio(estimates, true, k, baseline)
    first, second = wrong_calls(estimates, true, baseline)
    return {
        "mse": squared_error(estimates, true),
        "rank correlation": rank_correlation(estimates, true),
        "regret@1": regret(estimates, true),
        "type I": first,
        "type II": second,
        f"best@{k}": picked.best,
        f"worst@{k}": picked.worst,
        f"std@{k}": picked.std,
        f"violations@{k}": picked.violations,
        f"SharpeRatio@{k}": picked.sharpe,
    }


@dataclass(frozen=True)
class OffPolicyTable:
    """The measure of a run's logged batch: every estimator of every candidate with its interval, and what choosing by it is worth.

    candidates  names of the models; ``critic`` the name of their action values, in that order.
    Numbers ``ope/{candidate}/{estimator}`` and, where the task knows true values, ``ope/mse/{estimator}`` and the like; tables for people
    in ``state.tables``. A task without numbered states leaves nothing.
    """

    candidates: tuple[str, ...]
    critic: str = "q"
    discount: float = 1.0
    interval: str = "student"
    k: int = 3
    alpha: float = 0.25

    def __call__(self, state: Any) -> Mapping[str, float]:
        batch, policies = state.stores["fresh"], [state.models[name] for name in self.candidates]
        if "states" not in batch.contexts.get("policy", {}):
            return {}
        q = state.models[self.critic].module.values.detach()
        logs = Logs.of(batch, tuple(q.shape[1:]))
        chances = [policy.table.detach().softmax(-1) for policy in policies]
        found = {
            name: contributions(logs, chance, own, self.discount) for name, chance, own in zip(self.candidates, chances, q, strict=True)
        }
        bounds = find_interval(self.interval)
        spans = {name: {kind: bounds(values) for kind, values in own.items()} for name, own in found.items()}
        numbers = {f"ope/{name}/{kind}": span.value for name, own in spans.items() for kind, span in own.items()}
        exact = {name: state.task.value(policy) for name, policy in zip(self.candidates, policies, strict=True)}
        kinds = next(iter(spans.values()))
        rows = [{"estimator": kind, **{name: own[kind] for name, own in spans.items()}} for kind in kinds]
        state.tables["Estimated values"] = [{"estimator": "true value", **exact}, *rows]
        true, baseline = torch.tensor([*exact.values()]), state.task.value(state.models["policy"])
        choices = {
            kind: choice(torch.tensor([spans[name][kind].value for name in self.candidates]), true, baseline, self.k) for kind in kinds
        }
        state.tables["Choosing by estimates"] = [{"estimator": kind, **worth} for kind, worth in choices.items()]
        numbers |= {f"ope/{metric}/{kind}": value for kind, worth in choices.items() for metric, value in worth.items()}
        if state.task.mdp.unit is not None and self.discount == 1 and state.task.mdp.horizon is not None:
            state.tables["Distributions of returns"] = self._spread(state, logs, chances, q, policies)
        return numbers

    def _spread(self, state: Any, logs: Logs, chances: list[Tensor], q: Tensor, policies: list[Any]) -> list[dict[str, Any]]:
        rows = []
        for name, chance, own, policy in zip(self.candidates, chances, q, policies, strict=True):
            grid, mass = state.task.returns(policy)
            width = float(logs.rewards.sum(1).std())
            both = {"exact": mass.cumsum(0), **distributions(logs, chance, own, grid, width)}
            rows += [
                {"policy": name, "estimator": kind, **_named(summary(cdf, grid, self.alpha), self.alpha)} for kind, cdf in both.items()
            ]
        return rows


def _named(found: Summary, alpha: float) -> dict[str, Any]:
    quantiles = Interval(found.median, found.low, found.high)
    return {"mean": found.mean, "variance": found.variance, f"CVaR {alpha:g}": found.cvar, "median, quantiles": quantiles}


def _count(logs: Logs, discount: float) -> Any:
    return count(logs.states, logs.actions, logs.rewards, logs.ended, logs.mask, logs.shape, discount)


def _marginal(here: Logs, fitted_on: Logs, policy: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """(state–action, state) ratios [N, T] at the trajectories ``here``, counted on others or the same."""
    pairs, states = marginal_ratios(_count(fitted_on, discount), policy[None], discount)
    return at_actions(pairs[0], here), at_states(states[0], here)
