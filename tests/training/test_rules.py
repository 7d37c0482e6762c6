"""Rules: gradients → weights, against torch's own AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quatrain.errors import QuatrainError
from quatrain.training.rules import AdamW


def linear() -> nn.Linear:
    module = nn.utils.skip_init(nn.Linear, 2, 1)
    nn.init.constant_(module.weight, 0.5), nn.init.constant_(module.bias, 0.1)
    return module


def set_gradient(module: nn.Linear, value: float) -> None:
    module.weight.grad = torch.full_like(module.weight, value)
    module.bias.grad = torch.full_like(module.bias, value)


def test_a_step_is_adams_and_returns_the_norm_before_clipping():
    ours, theirs = linear(), linear()
    rule = AdamW(lr=0.1, weight_decay=0.01, clip_norm=1.0)
    optimizer, peer = rule.start(ours), torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01)
    for value in (2.0, -0.1):
        set_gradient(ours, value), set_gradient(theirs, value)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert rule.step(optimizer) == pytest.approx(abs(value) * 3**0.5)
        peer.step()
        assert torch.equal(ours.weight, theirs.weight) and ours.weight.grad is None


def test_zero_leaves_the_norm():
    module, rule = linear(), AdamW(lr=0.1, clip_norm=0.0, eps=1e3)  # a large eps: the step is proportional to the gradient
    optimizer = rule.start(module)
    set_gradient(module, 100.0)
    rule.step(optimizer)
    assert 0.5 - module.weight[0, 0].item() == pytest.approx(0.1 * 100 / 1100, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_not_applied(value: float):
    module, rule = linear(), AdamW(lr=0.1)
    optimizer = rule.start(module)
    set_gradient(module, value)
    assert rule.step(optimizer) is None and torch.equal(module.weight, linear().weight)
    assert module.weight.grad is None and not optimizer.state


def test_a_rate_that_moves_reaches_the_optimiser():
    module = linear()
    optimizer = AdamW(lr=0.1).start(module)
    set_gradient(module, 1.0)
    AdamW(lr=0.0).step(optimizer)
    assert torch.equal(module.weight, linear().weight) and optimizer.param_groups[0]["lr"] == 0.0


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(QuatrainError, match="learning rate is out of range"):
        AdamW(lr=-1.0)
    with pytest.raises(QuatrainError, match="no parameter requires a gradient"):
        AdamW(lr=0.1).start(linear().requires_grad_(False))
