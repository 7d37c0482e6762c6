"""Parts refuse what cannot be meant, and read an empty batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.guides import Surprise
from quatrain.parts.levels import GeometricClip, TwoLevelClip
from quatrain.parts.modes import HybridGroup
from quatrain.parts.perception import Perception
from quatrain.parts.proxies import MixtureRatio
from quatrain.parts.shaping import ByProbability


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeometricClip(low=0.0), "low is out of range"),
        (lambda: GeometricClip(clip="token"), "geometric clip"),
        (lambda: TwoLevelClip(1.5), "share of the action's ratio"),
        (lambda: TwoLevelClip(0.5, minimum="both"), "minimum of two levels"),
        (lambda: HybridGroup(within="batch"), "group of a z-score"),
        (lambda: Perception(far=0.0), "'far'"),
        (lambda: MixtureRatio(share=1.0), "share of a mixture"),
        (lambda: ByProbability("entropy"), "weight of a probability"),
    ],
)
def test_out_of_range(make: Callable[[], Any], message: str):
    with pytest.raises(QuatrainError, match=message):
        make()


@pytest.mark.parametrize("scale", ["batch", "response"])
def test_a_guide_of_no_action_is_zero(scale: str):
    column = Surprise(scale).of
    batch = Batch(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 3), columns={column: torch.rand(2, 3)})
    assert Surprise(scale)(batch).eq(0).all()
