"""Mask draws: the weights of the evidence bound are unbiased by enumeration; draws are stratified, addressed and within bounds."""

from __future__ import annotations

from itertools import combinations, permutations
from math import comb

import torch

from quatrain.models.mask_draws import hide, stratified, weight


def conditionals() -> dict:
    """log p(token i | what is seen) for three tokens: any numbers, as a model may have."""
    g = torch.Generator().manual_seed(0)
    seen = [frozenset(part) for size in range(3) for part in combinations(range(3), size)]
    return {(i, part): float(-torch.rand((), generator=g) * 3) for part in seen for i in range(3) if i not in part}


def test_the_weights_are_unbiased_on_three_tokens():
    """E over draws of L/k Σ_hidden log p equals the mean over all 3! orders of the autoregressive log-probability."""
    log_p = conditionals()
    orders = list(permutations(range(3)))
    exact = sum(log_p[i, frozenset(order[:place])] for order in orders for place, i in enumerate(order)) / len(orders)
    expected = 0.0
    eligible = torch.ones(1, 3, dtype=torch.bool)
    for k in (1, 2, 3):
        for part in combinations(range(3), k):
            hidden = torch.tensor([[i in part for i in range(3)]])
            chance = 1 / 3 / comb(3, k)
            bound = sum(log_p[i, frozenset(range(3)) - set(part)] for i in part)
            expected += chance * float(weight(hidden, eligible)) * bound
    assert abs(expected - exact) < 1e-12


def test_draws_have_the_distribution_that_the_bound_is_over():
    """k uniform, and each set of k equally likely: by counts of 20 thousand draws."""
    n = 20_000
    hidden = stratified(torch.ones(n, 3, dtype=torch.bool), 1, torch.arange(n))[:, 0]
    codes = (hidden.long() * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8)[1:].double() / n
    expected = torch.tensor([1 / 3 / comb(3, bin(code).count("1")) for code in range(1, 8)], dtype=torch.float64)
    assert float((codes - expected).abs().max()) < 0.012


def test_draws_are_stratified_addressed_and_eligible():
    eligible = torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    eligible[4] = False
    seeds = torch.tensor([3, 1, 4, 1, 5])
    hidden = stratified(eligible, 8, seeds)
    assert hidden.shape == (5, 8, 8) and not (hidden & ~eligible[:, None]).any() and not hidden[4].any()
    assert (hidden[:4].sum(2) >= 1).all()
    alone = stratified(eligible[2:3], 8, seeds[2:3])
    assert torch.equal(alone[0], hidden[2])
    full = stratified(torch.ones(1, 8, dtype=torch.bool), 8, torch.tensor([9]))
    assert full[0].sum(1).tolist() == list(range(1, 9))  # one draw from each eighth of the levels
    assert torch.equal(stratified(eligible, 2, seeds, whole=True)[:, 1], eligible)
    assert weight(hidden[:, 0], eligible)[4] == 0


def test_the_level_is_what_is_hidden():
    order = torch.tensor([[0.4, 0.1, 0.2, 0.3]])
    everything = torch.ones(1, 4, dtype=torch.bool)
    for level, count in ((0.0, 1), (0.24, 1), (0.25, 2), (0.99, 4), (1.0, 4)):
        hidden = hide(everything, torch.tensor([level]), order)
        assert int(hidden.sum()) == count and float(weight(hidden, everything)) == 4 / count
    assert hide(everything, torch.tensor([0.3]), order).tolist() == [[False, True, True, False]]
