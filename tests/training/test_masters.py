"""16-bit weights: small steps add up, and a resumed optimiser continues exactly."""

from __future__ import annotations

import copy

import torch
from torch import nn

from quatrain.training.masters import MasterAdamW
from quatrain.training.rules import AdamW


def module(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8).to(dtype)


def descend(layer: nn.Linear, rule: AdamW, optimizer: MasterAdamW, steps: int) -> None:
    for step in range(steps):
        x = torch.linspace(-1, 1, 8, dtype=layer.weight.dtype) * (1 + step % 3)
        layer(x).float().square().sum().backward()
        rule.step(optimizer)


def test_small_steps_are_not_lost_in_sixteen_bits():
    """lr 1e-5 is far below the spacing of bfloat16 at these weights: without masters nearly nothing would move."""
    rule = AdamW(lr=1e-5)
    exact, ours, plain = module(torch.float32), module(torch.bfloat16), module(torch.bfloat16)
    begin = ours.weight.detach().float().clone()
    for layer in (exact, ours):
        descend(layer, rule, rule.start(layer), 300)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-5, weight_decay=0.0)
    for step in range(300):
        plain(torch.linspace(-1, 1, 8, dtype=torch.bfloat16) * (1 + step % 3)).float().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved, wanted, lost = (part.weight.detach().float() - begin for part in (ours, exact, plain))
    assert (moved != 0).float().mean() > 0.9 > 2 * (lost != 0).float().mean()
    assert torch.nn.functional.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.9


def test_fp32_weights_are_stepped_as_they_are():
    ours, plain = module(torch.float32), module(torch.float32)
    rule = AdamW(lr=1e-2, clip_norm=0.0)
    descend(ours, rule, rule.start(ours), 5)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(5):
        plain(torch.linspace(-1, 1, 8) * (1 + step % 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(ours.weight, plain.weight)


def test_resumed_sixteen_bit_training_is_the_uncut_one():
    rule, whole = AdamW(lr=1e-4), module(torch.bfloat16)
    optimizer = rule.start(whole)
    descend(whole, rule, optimizer, 6)
    cut, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    again = rule.start(cut)
    again.load_state_dict(state)
    for layer, own in ((whole, optimizer), (cut, again)):
        descend(layer, rule, own, 6)
    assert torch.equal(whole.weight, cut.weight)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(optimizer.pairs, again.pairs, strict=True))
