"""Exact variances: they repeat themselves, and a baseline that weighs by length differs from the mean's."""

from __future__ import annotations

from quatrain.experiments.miniatures.baseline_noise import noises


def test_noises():
    found = noises(0, problems=("tree",), draws=2)
    assert set(found) == {"length", "mean", "none"} and found == noises(0, problems=("tree",), draws=2)
    assert found["length"] != found["mean"] and found != noises(1, problems=("tree",), draws=2)
    # one action per answer: every length is 1, so that the two baselines are one
    bandit = noises(0, problems=("bandit",), draws=2)
    assert abs(bandit["length"] - bandit["mean"]) < 1e-9
