"""The slow–fast rule: its closed formula, its limits, and what becomes of the moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from quatrain.errors import QuatrainError
from quatrain.training.rules import AdamW
from quatrain.training.slow_fast import SlowFast

SCALE = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)
START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


@dataclass(frozen=True)
class Descent:
    """Plain gradient descent."""

    lr: float = 0.1

    def start(self, module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(module.parameters(), lr=self.lr)

    def update(self, optimizer: torch.optim.Optimizer, gradient: Callable[[], None]) -> float:
        gradient()
        optimizer.step()
        optimizer.zero_grad()
        return 1.0


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(START.clone())


def quadratic(module: Point) -> Callable[[], None]:
    """∇ of ½ Σ scale·x²."""
    return lambda: (0.5 * (SCALE * module.at**2).sum()).backward()


def after(rule, updates: int = 1) -> tuple[Tensor, torch.optim.Optimizer]:
    module = Point()
    optimizer = rule.start(module)
    for _ in range(updates):
        assert rule.update(optimizer, quadratic(module)) is not None
    return module.at.detach(), optimizer


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_on_a_quadratic_it_is_the_closed_formula(steps: int, alpha: float):
    lr, fast = 0.1, START.clone()
    walked = torch.zeros(3, dtype=torch.float64)
    for _ in range(steps):
        walked += SCALE * fast
        fast = fast - lr * SCALE * fast
    middle = START - lr * alpha * walked
    expected = START - lr * (alpha * walked + SCALE * middle)
    assert torch.allclose(expected, (1 - lr * SCALE) * (START + alpha * ((1 - lr * SCALE) ** steps - 1) * START), rtol=1e-12)
    assert torch.allclose(after(SlowFast(Descent(lr), steps, alpha))[0], expected, rtol=1e-12)


@pytest.mark.parametrize("moments", ["kept", "rewound"])
def test_without_fast_steps_it_is_the_inner_rule(moments: str):
    plain, memory = after(AdamW(lr=0.1), 3)
    for steps, alpha in ((3, 0.0), (0, 0.8)):
        found, optimizer = after(SlowFast(AdamW(lr=0.1), steps, alpha, moments), 3)
        (ours,), (theirs,) = optimizer.state.values(), memory.state.values()
        assert torch.equal(found, plain) and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("moments", ["kept", "rewound"])
def test_the_moments_as_torch_would_have_them(moments: str):
    """Two updates beside torch's AdamW, saved and put back by hand."""
    found, ours = after(SlowFast(AdamW(lr=0.1, clip_norm=0.0), 2, 0.5, moments), 2)
    module = Point()
    peer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.0)

    def step() -> None:
        peer.zero_grad()
        quadratic(module)()
        peer.step()

    for _ in range(2):
        start = module.at.detach().clone()
        saved = {name: value.clone() for name, value in peer.state[module.at].items()} if peer.state else None
        step(), step()
        with torch.no_grad():
            module.at.copy_(0.5 * start + 0.5 * module.at)
        if moments == "rewound":
            peer.state.clear()
            if saved is not None:
                peer.state[module.at] = saved
        step()
    (memory,) = ours.state.values()
    assert int(memory["step"]) == (6 if moments == "kept" else 2)
    assert torch.allclose(found, module.at.detach(), rtol=1e-12)
    assert all(torch.allclose(memory[name], value, rtol=1e-12) for name, value in peer.state[module.at].items())


@pytest.mark.parametrize("breaks", [0, 1, 3])
@pytest.mark.parametrize("how", ["nan", "raises"])
def test_a_gradient_that_breaks_leaves_all_as_it_was(breaks: int, how: str):
    module, rule = Point(), SlowFast(AdamW(lr=0.1), 3, 0.8)
    optimizer = rule.start(module)
    rule.update(optimizer, quadratic(module))
    weights, (memory,) = module.at.detach().clone(), optimizer.state.values()
    memory = {name: value.clone() for name, value in memory.items()}
    calls = []

    def gradient() -> None:
        calls.append(1)
        quadratic(module)()
        if len(calls) == breaks + 1:
            if how == "raises":
                raise ArithmeticError
            module.at.grad.fill_(float("nan"))

    if how == "raises":
        with pytest.raises(ArithmeticError):
            rule.update(optimizer, gradient)
    else:
        assert rule.update(optimizer, gradient) is None
    (now,) = optimizer.state.values()
    assert len(calls) == breaks + 1 and torch.equal(module.at, weights)
    assert all(torch.equal(now[name], value) for name, value in memory.items())


def test_options_are_checked():
    for options, says in (({"alpha": 1.5}, "share of the way"), ({"steps": -1}, "fast steps"), ({"moments": "half"}, "moments")):
        with pytest.raises(QuatrainError, match=says):
            SlowFast(**options)


def test_16_bit_weights_follow_their_masters_back():
    module = Point().to(torch.bfloat16)
    rule = SlowFast(AdamW(lr=0.1), 3, 0.5)
    optimizer = rule.start(module)
    seen = []

    def gradient() -> None:
        seen.append(module.at.detach().clone())
        module.at.grad = torch.ones_like(module.at)

    rule.update(optimizer, gradient)
    start = Point().at.detach().to(torch.bfloat16).float()
    assert torch.equal(seen[3], (start - 0.15).bfloat16())  # Adam's steps on equal gradients are the rate: half of 3 of them
    assert rule.update(optimizer, lambda: setattr(module.at, "grad", torch.full_like(module.at, float("nan")))) is None
    assert torch.equal(module.at.detach(), (start - 0.25).bfloat16())
