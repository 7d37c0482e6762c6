"""How far are off-policy estimates from exact values? On the bidding table, whose values and distributions of returns are known exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quatrain.environments.tables.exact import values
from quatrain.environments.tables.generators import rtb
from quatrain.environments.tables.returns import return_distribution
from quatrain.environments.tables.task import TableTask
from quatrain.evaluation.off_policy.cumulative import summary
from quatrain.evaluation.off_policy.selection import portfolio, rank_correlation
from quatrain.evaluation.off_policy.table import Logs, contributions, distributions
from quatrain.evaluation.off_policy.tabular import count, tabular_values
from quatrain.protocols import Sampling

# (sharpness, noise) of the candidates, relatives of the behaviour policy from opposite to far sharper.
RELATIVES = ((-0.5, 0.3), (0.0, 0.3), (0.5, 0.3), (1.5, 0.3), (2.0, 0.3), (3.0, 0.3))


def scene(seed: int, horizon: int, trajectories: int) -> tuple[TableTask, Logs, Tensor, Tensor]:
    """(task, logs of its behaviour policy, six candidates [K, S, V], their fitted values [K, S, V])."""
    task = TableTask(rtb(horizon=horizon, seed=seed), seed)
    policy = task.network(seed=seed)
    batch = task.rollout(policy, task.starts("train", 0, trajectories), 1, Sampling(max_actions=horizon), seed)
    g = torch.Generator().manual_seed(seed)
    table = policy.table.detach()
    relatives = [sharp * table + noise * torch.randn(table.shape, generator=g, dtype=torch.float64) for sharp, noise in RELATIVES]
    candidates = torch.stack(relatives).softmax(-1)
    logs = Logs.of(batch, tuple(table.shape))
    counts = count(logs.states, logs.actions, logs.rewards, logs.ended, logs.mask, logs.shape)
    return task, logs, candidates, tabular_values(counts, candidates, sweeps=horizon)


def errors(seed: int, horizon: int = 20, trajectories: int = 500) -> dict[str, float]:
    """Estimator → log10 of the mean squared error over six candidates; ``dr, marginal`` is the worse of dr and of sam-dr."""
    task, logs, candidates, fitted = scene(seed, horizon, trajectories)
    true = values(task.mdp, candidates).value
    squares: dict[str, float] = {}
    for policy, q, value in zip(candidates, fitted, true.tolist(), strict=True):
        for name, found in contributions(logs, policy, q).items():
            squares[name] = squares.get(name, 0.0) + (float(found.mean()) - value) ** 2 / len(candidates)
    found = {name: math.log10(max(square, 1e-12)) for name, square in squares.items()}
    return found | {"dr, marginal": max(found["dr"], found["sam-dr"])}


def tails(seed: int, horizon: int = 5, trajectories: int = 500, alpha: float = 0.25) -> dict[str, float]:
    """Mean over six candidates of CVaR_α of the return in its exact standard deviations: ``exact``, and as estimated from the logs."""
    task, logs, candidates, fitted = scene(seed, horizon, trajectories)
    found: dict[str, float] = {}
    for policy, q in zip(candidates, fitted, strict=True):
        grid, mass = return_distribution(task.mdp, policy)
        cdfs = {"exact": mass.cumsum(0), **distributions(logs, policy, q, grid, float(logs.rewards.sum(1).std()))}
        scale = len(candidates) * math.sqrt(summary(cdfs["exact"], grid).variance)
        for name, cdf in cdfs.items():
            found[name] = found.get(name, 0.0) + summary(cdf, grid, alpha).cvar / scale
    return found


def told_apart(seed: int, horizon: int = 10, policies: int = 8, k: int = 3, draws: int = 400) -> dict[str, float]:
    """``score``: how often, of pairs of estimators with one squared error and one rank correlation, SharpeRatio@k prefers the careful one.

    The reckless one overestimates the worst policy as the best of all; the careful one underestimates the best policy as the worst, by
    the same amount: one squared error, and ranks that are each other's mirror. Ties count half. True values are those of random policies of
    the table, best and worst of them as far from their neighbours; ``error`` and ``rank`` are the largest differences of the two metrics.
    """
    mdp = rtb(horizon=horizon, seed=seed)
    g = torch.Generator().manual_seed(seed)
    wins, error, rank = 0.0, 0.0, 0.0
    base = TableTask(mdp, seed).network(seed=seed).table.detach()
    sharpness = 4 * torch.rand(draws * policies, 1, 1, generator=g, dtype=torch.float64) - 1
    tables = sharpness * base + torch.randn(draws * policies, *base.shape, generator=g, dtype=torch.float64)
    everyone = values(mdp, tables.softmax(-1)).value.view(draws, policies).sort(1).values
    behaviour = float(values(mdp, base.softmax(-1)).value)
    for true in everyone:
        size = float(true[-1] - true[0]) * 1.1
        reckless, careful = true.clone(), true.clone()
        reckless[0] += size
        careful[-1] -= size
        error = max(error, abs(float((reckless - true).square().mean() - (careful - true).square().mean())))
        rank = max(rank, abs(rank_correlation(reckless, true) - rank_correlation(careful, true)))
        first, second = (portfolio(estimate, true, k, behaviour).sharpe for estimate in (careful, reckless))
        wins += 0.5 if first == second or math.isnan(first) or math.isnan(second) else float(first > second)
    return {"score": wins / draws, "error": error, "rank": rank}
