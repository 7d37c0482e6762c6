"""Guides are computed once per update, for any bound; equal ones share a column; a missing column is refused by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.parts.guides import Surprise, guide_column, guides_of
from quatrain.parts.levels import TwoLevelClip
from quatrain.parts.likelihoods import Entropy


@dataclass(frozen=True)
class LargestLength:
    """A static guide of the test: the longest answer of the update."""

    needs = ()

    def __call__(self, batch: Batch) -> Tensor:
        return torch.full((len(batch),), float(batch.lengths.max()))


@dataclass(frozen=True)
class ByLength:
    guides = (LargestLength(),)

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        return batch[guide_column(LargestLength())] * log_ratio.exp()


BATCH = Batch(torch.tensor([[True, True, True], [True, False, False]]), torch.zeros(2, 3))


def test_a_guide_is_that_of_the_whole_update_also_on_a_part_of_it():
    objective = Objective({"policy": Term(bound=ByLength(), aggregation=lambda batch, where: where.double())})
    final = objective.finalise(objective.prepare(BATCH))
    part = final.take([1])
    (likelihood,) = objective.statistics()
    assert objective.estimate(part, {likelihood: torch.ones(1, 3)}).terms["policy"].coefficient.tolist() == [[3.0, 0.0, 0.0]]
    assert not objective.live


def test_equal_guides_share_a_column_and_a_live_one_needs_a_pass():
    first, second = TwoLevelClip(Surprise()), TwoLevelClip(Surprise("batch"), (0.1, 0.1))
    assert guide_column(*guides_of(first)) == guide_column(*guides_of(second)) != guide_column(Surprise("response"))
    assert guides_of(TwoLevelClip(0.5)) == () == guides_of(torch.exp)
    objective = Objective({"policy": Term(bound=first)})
    assert objective.live and Entropy() in objective.statistics() and objective.needs() == set()


def test_a_guide_that_reads_what_nobody_provides_is_refused():
    with pytest.raises(QuatrainError, match=r"(?s)'old_entropy' is needed by the bound of term 'policy'"):
        Objective({"policy": Term(bound=TwoLevelClip(Surprise(of="old_entropy")))}).check({"prompt"})
