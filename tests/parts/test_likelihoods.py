"""Statistics read the distribution they are given."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical
from quatrain.parts.likelihoods import Divergence, Entropy, LogProb

P = Categorical(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log())
Q = Categorical(torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log())


def test_values():
    action = torch.tensor([1])
    assert LogProb()(P, action, {}).item() == pytest.approx(math.log(0.25))
    assert Entropy()(P, action, {}).item() == pytest.approx(1.5 * math.log(2))
    assert Divergence("teacher", "reverse")(P, action, {"teacher": Q}).item() == pytest.approx(0.25 * math.log(2))
    assert Divergence("teacher", "forward")(P, action, {"teacher": Q}).item() == pytest.approx(0.25 * math.log(2))
    assert 0 < Divergence("teacher", "jsd")(P, action, {"teacher": Q}).item() < 0.25 * math.log(2)


def test_they_are_keys_and_say_which_models_they_need():
    assert LogProb() == LogProb() and len({LogProb(), LogProb(), Entropy(), Divergence(), Divergence(kind="jsd")}) == 4
    assert LogProb().needs == Entropy().needs == () and Divergence("expert").needs == ("expert",)


def test_an_unknown_divergence_is_refused():
    with pytest.raises(QuatrainError, match="unknown kind of divergence"):
        Divergence(kind="hellinger")
