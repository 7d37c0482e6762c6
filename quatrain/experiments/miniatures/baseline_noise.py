"""How noisy a policy gradient is with one baseline or another: exact variances on enumerated problems whose answers differ in length."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from quatrain.experiments.diagnose.judge import Setting, judge
from quatrain.experiments.diagnose.problems import find_problem
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.baselines import Affine, WeightedBaseline

BASELINES = {"length": WeightedBaseline(), "mean": GroupRelative(scale="none"), "none": Affine()}


def noises(seed: int, problems: tuple[str, ...] = ("tree", "loops"), draws: int = 4, spread: float = 0.7) -> dict[str, float]:
    """Baseline → log10 of the gradient's relative variance per sampled token, mean over the problems, of a random policy.

    Relative to the square of the mean gradient: a baseline that contains its own sample shrinks both.
    """
    from quatrain.training.registry import make

    generator = torch.Generator().manual_seed(seed)
    found = dict.fromkeys(BASELINES, 0.0)
    for name in problems:
        problem = find_problem(name)
        table = spread * torch.randn(problem.table.shape, dtype=torch.float64, generator=generator)
        for label, advantage in BASELINES.items():
            judged = judge(make("rloo", group=draws).but(advantage=advantage), replace(problem, table=table), Setting(draws=draws))
            found[label] += math.log10(judged.noise) / len(problems)
    return found
