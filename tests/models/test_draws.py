"""Randomness addressed by seed and step; inverse CDF; truncation, by hand and against enumeration."""

from __future__ import annotations

import math

import pytest
import torch

from quatrain.models.draws import BLOCK, CANDIDATES, draw, inverse_cdf, kept, normals, stream, uniforms
from quatrain.protocols import Sampling


def test_uniforms_are_a_function_of_seed_and_step() -> None:
    seeds, steps = torch.tensor([5, -1, 2**62, 0]), torch.arange(50)
    table = uniforms(seeds, steps)
    assert torch.equal(table[2:3, 7:8], uniforms(torch.tensor([2**62]), torch.tensor([7])))
    assert table.min() >= 0 and table.max() < 1 and len(table.unique()) == table.numel()


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    table = uniforms(torch.arange(400), torch.arange(250))
    counts = torch.histc(table.float(), 50, 0, 1)
    assert ((counts - 2000).square() / 2000).sum().item() < 95  # χ² with 49 degrees of freedom, p = 1e-4
    for a, b in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):  # neighbouring seeds, neighbouring steps
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 4 / math.sqrt(1e5)


def test_inverse_cdf_by_hand() -> None:
    weight = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(5, 5)
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.99, 1 - 2.0**-52], dtype=torch.float64)
    assert inverse_cdf(weight, uniform).tolist() == [1, 1, 3, 3, 3]


@pytest.mark.parametrize("size", [7, 2 * BLOCK, 2 * BLOCK + 1, 5000])
def test_inverse_cdf_over_blocks_equals_one_sum(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    weight = torch.rand(300, size, generator=generator) * (torch.rand(300, size, generator=generator) < 0.3)
    weight[:, size // 2] = 1
    uniform = torch.rand(300, generator=generator, dtype=torch.float64)
    total = weight.double().cumsum(-1)
    expected = (total <= uniform[:, None] * total[:, -1:]).sum(-1)
    index = inverse_cdf(weight, uniform)
    assert torch.equal(index, expected) and (weight[torch.arange(300), index] > 0).all()


def test_truncation_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log().expand(4, 4)
    uniform = torch.tensor([0.1, 0.6, 0.7, 0.99], dtype=torch.float64)
    action, logp, support = draw(logits, uniform, Sampling(top_p=0.7))
    assert action.tolist() == [0, 0, 1, 1] and support[0].tolist() == [1, 2]  # 0.5 < 0.7 ≤ 0.75: two candidates
    assert logp.exp().tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    action, logp, support = draw(logits, uniform, Sampling(top_k=1))
    assert action.tolist() == [0] * 4 and logp.tolist() == [0] * 4 and support.tolist() == [[1]] * 4
    # Top-k first: among {0.5, 0.25} the first already has mass 2/3 ≥ 0.6.
    assert draw(logits, uniform, Sampling(top_k=2, top_p=0.6))[2].tolist() == [[1]] * 4
    # Temperature first: at 0.5 the masses are proportional to squares, 0.25/0.345 ≥ 0.7.
    assert draw(logits, uniform, Sampling(temperature=0.5, top_p=0.7))[2].tolist() == [[1]] * 4


def test_rows_of_different_support_are_padded_with_zero() -> None:
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]]).log()
    _, _, support = draw(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), Sampling(top_p=0.8))
    assert support[0].tolist() == [1, 0, 0] and sorted(support[1].tolist()) == [1, 2, 3]


def test_top_p_alone_looks_at_a_limited_number_of_candidates() -> None:
    _, logp, support = draw(torch.zeros(1, 3000), torch.tensor([0.5], dtype=torch.float64), Sampling(top_p=0.99))
    assert support.shape == (1, CANDIDATES) and logp.item() == pytest.approx(-math.log(CANDIDATES), abs=1e-5)


def test_greedy_takes_the_likeliest_and_reports_the_plain_log_probability() -> None:
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    action, logp, support = draw(logits, torch.zeros(1, dtype=torch.float64), Sampling(temperature=0, top_p=0.5, top_k=1))
    assert action.tolist() == [1] and logp.exp().item() == pytest.approx(0.5) and support is None


def test_normals_and_dropout_are_functions_of_their_seeds():
    seeds = torch.randint(2**62, (4000,), generator=torch.Generator().manual_seed(0))
    drawn, left = normals(seeds, 3), kept(seeds, 10, 0.1)
    assert drawn.mean().abs() < 0.03 and abs(float(drawn.std()) - 1) < 0.03
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 0.05
    assert abs(float((left == 0).float().mean()) - 0.1) < 0.01 and torch.allclose(left.max(), torch.tensor(1 / 0.9))
    assert torch.corrcoef(left.T)[0, 4].abs() < 0.05  # of two words
    some = torch.tensor([7, 3999])
    assert torch.equal(normals(seeds[some], 3), drawn[some]) and torch.equal(kept(seeds[some], 10, 0.1), left[some])
    other = normals(stream(seeds, "other"), 3)
    assert torch.corrcoef(torch.stack([drawn[:, 0], other[:, 0]]))[0, 1].abs() < 0.05
