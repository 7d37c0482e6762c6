"""The proof that it is not about tokens: the same loop, estimator and recipes on CartPole-v1."""

from __future__ import annotations

from pathlib import Path

import pytest

import quatrain

QUIET = {
    "task": "gym:CartPole-v1",
    "live": False,
    "tensorboard": False,
    "report": False,
    "eval_every": 0,
    "eval_count": 100,
    "eval_samples": 0,
}


def test_ppo_solves_cartpole(tmp_path: Path):
    """Mean return above 475 over 100 episodes, within a minute."""
    options = {"steps": 30, "epochs": 4, "minibatches": 8, "entropy": 0.01, "schedule": "linear", "save_every": 0}
    run = quatrain.train("ppo", out=str(tmp_path), **options, **QUIET)
    assert run.metrics["return"] > 475
    assert run.seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {"kl": 0.0, "prompts": 4, "lr": 5e-3, "steps": 40}),
        ("reinforce", {"discount": 0.99, "lr": 5e-3, "steps": 60}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_episodes_as_trajectories_solve_cartpole(name: str, options: dict, seed: int, tmp_path: Path):
    assert quatrain.train(name, out=str(tmp_path), seed=seed, save_every=0, **options, **QUIET).metrics["return"] > 475
