from __future__ import annotations

import pytest
import torch

from quatrain.experiments.doctor.frequencies import allowed, compare
from quatrain.models.draws import draw
from quatrain.protocols import Sampling

LOGITS = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()


def counts(p: list[float], draws: int = 1000) -> torch.Tensor:
    return (torch.tensor(p) * draws).round().long()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [True] * 4),
        (Sampling(top_k=2), [True, True, False, False]),
        (Sampling(top_p=0.65), [True, True, False, False]),
        (Sampling(top_p=0.75), [True, True, True, False]),
        (Sampling(top_p=0.01), [True, False, False, False]),
        (Sampling(top_k=3, top_p=0.8), [True, True, True, False]),  # of the three that are left: 4/9, 3/9, 2/9
        (Sampling(top_k=3, top_p=0.7), [True, True, False, False]),
        (Sampling(temperature=0.5, top_p=0.8), [True, True, False, False]),  # 16, 9, 4, 1 of 30
    ],
)
def test_what_may_be_sampled_by_hand(sampling: Sampling, expected: list[bool]):
    assert allowed(LOGITS, sampling).tolist() == expected


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.9), Sampling(temperature=0.6, top_p=0.7, top_k=20), Sampling(top_k=7)])
def test_the_support_is_the_samplers(sampling: Sampling):
    """Computed in another way (a sort in float64) it is what the sampler reports."""
    logits = 3 * torch.randn(200, 60, generator=torch.Generator().manual_seed(0))
    _, _, support = draw(logits, torch.full((200,), 0.5, dtype=torch.float64), sampling)
    for row, ids in zip(logits, support, strict=True):
        assert set((ids[ids > 0] - 1).tolist()) == set(allowed(row, sampling).nonzero()[:, 0].tolist())


def test_exact_frequencies_have_p_one():
    found = compare(counts([0.4, 0.3, 0.2, 0.1]), LOGITS, Sampling(), 1e-4)
    assert (found.chance, found.outside, found.draws) == (pytest.approx(1.0), 0, 1000)


def test_chi_square_by_hand():
    """Two cells, 460 against 500 of 1000: χ² = 2·40²/500 = 6.4 with one degree of freedom."""
    assert compare(torch.tensor([540, 460]), torch.zeros(2), Sampling(), 1e-4).chance == pytest.approx(0.011412, abs=1e-5)


def test_another_temperature_or_support_is_seen():
    assert compare(counts([0.4, 0.3, 0.2, 0.1]), LOGITS, Sampling(temperature=0.7), 1e-4).chance < 1e-6
    assert compare(counts([0.4, 0.3, 0.2, 0.1]), LOGITS, Sampling(top_k=3), 1e-4).outside == 100


def test_what_is_borderline_is_not_held_against_anybody():
    """0.4 + 0.3 reach a top_p of 0.7 or not, by rounding: the third action may be there."""
    for seen in ([0.57, 0.43, 0.0, 0.0], [0.444, 0.334, 0.222, 0.0]):
        found = compare(counts(seen), LOGITS, Sampling(top_p=0.7), 1e-3)
        assert found.outside == 0 and found.chance > 0.5
    assert compare(counts([0.4, 0.3, 0.2, 0.1]), LOGITS, Sampling(top_p=0.7), 1e-3).outside == 100


def test_false_findings_are_as_rare_as_their_p_value():
    """Under the right distribution p is uniform: of 400 tests about 5 % are below 0.05, and none below the doctor's limit."""
    g = torch.Generator().manual_seed(0)
    chances = []
    for _ in range(400):
        drawn = torch.multinomial(LOGITS.exp(), 500, replacement=True, generator=g)
        chances.append(compare(torch.bincount(drawn, minlength=4), LOGITS, Sampling(), 1e-4).chance)
    share = sum(chance < 0.05 for chance in chances) / 400
    assert 0.02 < share < 0.085 and min(chances) > 1e-6
