"""The same off-policy estimates as SCOPE-RL 0.2.1 and Open Bandit Pipeline 0.4.1 on the same log; or the reason why not.

Skipped where they are not installed. They pin old relatives of torch; in an environment that has torch:

    pip install --no-deps scope-rl==0.2.1 obp==0.4.1 d3rlpy==2.0.4 gym==0.26.2 gym-notices structlog colorama dataclasses-json \
        marshmallow typing-inspect h5py pytorch-revgrad==0.2.0
    pip install scikit-learn seaborn pandas tqdm
    python -m pytest -s tests/conformance/test_off_policy.py
"""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from quatrain.environments.tables.task import table_task
from quatrain.evaluation.off_policy.cumulative import importance_cdf
from quatrain.evaluation.off_policy.estimators import corrected, direct, doubly_robust, per_decision, trajectory_wise, weighted
from quatrain.evaluation.off_policy.intervals import student
from quatrain.evaluation.off_policy.ratios import action_ratio, cumulative, spectrum
from quatrain.evaluation.off_policy.table import Logs, at_actions, at_states
from quatrain.protocols import Sampling

HORIZON, GAMMA = 6, 0.9


@pytest.fixture(scope="module")
def log() -> dict[str, Any]:
    """300 logged episodes of six steps, a target policy, random values and marginal ratios: the same numbers for both sides."""
    task, g = table_task("rtb", {"horizon": HORIZON}), torch.Generator().manual_seed(0)
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 300), 1, Sampling(max_actions=HORIZON), 3)
    target = (2 * policy.table.detach()).softmax(-1)
    q = torch.rand(target.shape, generator=g, dtype=torch.float64)
    logs = Logs.of(batch, tuple(target.shape))
    ratio = action_ratio(at_actions(target, logs).log(), logs.behaviour_logp, logs.mask)
    return {
        "logs": logs,
        "ratio": ratio,
        "q": at_actions(q, logs),
        "v": at_states((target * q).sum(-1), logs),
        "marginal": torch.rand(ratio.shape, generator=g, dtype=torch.float64) * 2,
        "peer": {
            "step_per_trajectory": HORIZON,
            "action": logs.actions.flatten().numpy(),
            "reward": logs.rewards.flatten().numpy(),
            "pscore": logs.behaviour_logp.exp().flatten().numpy(),
            "evaluation_policy_action_dist": target[logs.states[:, :-1]].flatten(0, 1).numpy(),
            "state_action_value_prediction": q[logs.states[:, :-1]].flatten(0, 1).numpy(),
            "gamma": GAMMA,
        },
    }


def keep(name: str, differences: dict[str, float]) -> None:
    """Print the largest differences; where CONFORMANCE names a folder, write them there."""
    print("\n" + "\n".join(f"{name} {kind}: {value:.1e}" for kind, value in differences.items()))
    if folder := os.environ.get("CONFORMANCE"):
        path = Path(folder) / "off_policy.json"
        known = (
            json.loads(path.read_text())
            if path.exists()
            else {"command": "CONFORMANCE=FOLDER python -m pytest -s tests/conformance/test_off_policy.py"}
        )
        path.write_text(json.dumps(known | {name: {kind: float(f"{value:.2e}") for kind, value in differences.items()}}, indent=1) + "\n")


def test_estimates_are_those_of_scope_rl(log: dict[str, Any]):
    pytest.importorskip("scope_rl")
    from scope_rl.ope.discrete import basic_estimators as basic
    from scope_rl.ope.discrete import marginal_estimators as marginal
    from scope_rl.ope.discrete.cumulative_distribution_estimators import CumulativeDistributionTIS

    logs, ratio, values = log["logs"], log["ratio"], {"q": log["q"], "v": log["v"]}
    ours = {
        "dm": (direct(log["v"]), basic.DirectMethod()),
        "tis": (trajectory_wise(ratio, logs.rewards, GAMMA), basic.TrajectoryWiseImportanceSampling()),
        "pdis": (per_decision(ratio, logs.rewards, GAMMA), basic.PerDecisionImportanceSampling()),
        "dr": (doubly_robust(ratio, logs.rewards, **values, discount=GAMMA), basic.DoublyRobust()),
        "sn-tis": (trajectory_wise(ratio, logs.rewards, GAMMA, normalise=True), basic.SelfNormalizedTIS()),
        "sn-pdis": (per_decision(ratio, logs.rewards, GAMMA, normalise=True), basic.SelfNormalizedPDIS()),
        "sn-dr": (doubly_robust(ratio, logs.rewards, **values, discount=GAMMA, normalise=True), basic.SelfNormalizedDR()),
        # its code has no discount here
        "drl": (corrected(log["marginal"], logs.rewards, **values), marginal.DoubleReinforcementLearning()),
    }
    for window in (1, 2, 3):  # at 0 its code is not a marginal estimator: it multiplies by nothing
        mixed = spectrum(ratio, log["marginal"], window)
        ours[f"sope {window}"] = (weighted(mixed, logs.rewards, GAMMA), marginal.StateActionMarginalIS())
        ours[f"sope {window}, normalised"] = (weighted(mixed, logs.rewards, GAMMA, normalise=True), marginal.StateActionMarginalSNIS())
    found = {}
    for kind, (own, peer) in ours.items():
        given = log["peer"] | {"state_action_marginal_importance_weight": log["marginal"].flatten().numpy()}
        if kind.startswith("sope"):
            given |= {"n_step_pdis": int(kind.split()[1].strip(","))}
        method = peer._estimate_trajectory_value
        wanted = inspect.signature(method).parameters
        theirs = method(**{name: value for name, value in given.items() if name in wanted})
        found[kind] = float((own - torch.as_tensor(theirs)).abs().max())
    grid = torch.arange(20).double() - 0.5  # between returns: it counts those strictly below, cuts at 1, and is 0 at the first point
    own = importance_cdf(cumulative(ratio)[:, -1], logs.rewards.sum(1), grid).clamp(0, 1)
    peer = {name: value for name, value in log["peer"].items() if name != "state_action_value_prediction"} | {"gamma": 1.0}
    theirs = CumulativeDistributionTIS().estimate_cumulative_distribution_function(**peer, reward_scale=grid.numpy())
    seen = (logs.rewards.sum(1)[:, None] <= grid).any(0)  # below all returns it has the weight of the lowest
    found["cdf, tis"] = float((own - torch.as_tensor(theirs))[seen].abs().max())
    keep("scope-rl 0.2.1", found)
    # Its self-normalisation adds 1e-10 to the mean weight, so that those agree to about that.
    assert all(value < (1e-7 if "sn-" in kind or "normalised" in kind else 1e-10) for kind, value in found.items())


def test_a_bandit_is_a_problem_of_one_step_for_open_bandit_pipeline(log: dict[str, Any]):
    obp = pytest.importorskip("obp.ope")
    logs, ratio = log["logs"], log["ratio"][:, :1]
    rewards, q, v = logs.rewards[:, :1], log["q"][:, :1], log["v"][:, :1]
    dist = log["peer"]["evaluation_policy_action_dist"].reshape(-1, HORIZON, 3)[:, 0]
    model = log["peer"]["state_action_value_prediction"].reshape(-1, HORIZON, 3)[:, 0]
    shared = {
        "reward": rewards[:, 0].numpy(),
        "action": logs.actions[:, 0].numpy(),
        "pscore": logs.behaviour_logp[:, 0].exp().numpy(),
        "action_dist": dist[:, :, None],
        "estimated_rewards_by_reg_model": model[:, :, None],
        "position": None,
    }
    import numpy as np

    shared["position"] = np.zeros(len(rewards), dtype=int)
    ours = {
        "dm": (direct(v), obp.DirectMethod()),
        "ips": (per_decision(ratio, rewards), obp.InverseProbabilityWeighting()),
        "snips": (per_decision(ratio, rewards, normalise=True), obp.SelfNormalizedInverseProbabilityWeighting()),
        "dr": (doubly_robust(ratio, rewards, q, v), obp.DoublyRobust()),
    }
    found = {kind: abs(float(own.mean()) - float(peer.estimate_policy_value(**shared))) for kind, (own, peer) in ours.items()}
    keep("obp 0.4.1", found)
    assert all(value < 1e-10 for value in found.values())


def test_where_scope_rl_differs_its_code_says_why(log: dict[str, Any]):
    """Intervals of one side for two, a Hoeffding width that grows with n: ours are the textbook's."""
    utils = pytest.importorskip("scope_rl.utils")
    values = trajectory_wise(log["ratio"], log["logs"].rewards)
    theirs = utils.estimate_confidence_interval_by_t_test(values.numpy(), alpha=0.05)
    upper = next(value for name, value in theirs.items() if "upper" in name)
    assert upper == pytest.approx(student(values, level=0.9).high)  # its "95 %" is the two-sided 90 %
    small, large = values[:30].numpy(), values.numpy()
    width = [
        next(value for name, value in bounds.items() if "upper" in name) - bounds["mean"]
        for bounds in (utils.estimate_confidence_interval_by_hoeffding(part, alpha=0.05) for part in (small, large))
    ]
    assert width[1] > width[0]  # √n in place of 1/√n
