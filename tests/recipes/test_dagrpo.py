"""dagrpo: autograd of the masked surrogate, prompt by prompt, with distances by a plain recursion; what the mask keeps, by hand."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError
from quatrain.parts.distances import Distinct, EditDistance, OverlapDistance, ScoreGap
from quatrain.parts.gates import Solved
from quatrain.parts.shaping import Shaped
from quatrain.protocols import Sampling
from quatrain.rollout.edits import AddDemonstrations
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.toy import NAN, Case, TabularPolicy, ToyTask, assert_same, autograd, case, gradient, plain_logp


def levenshtein(a: tuple, b: tuple) -> int:
    @cache
    def edits(m: int, n: int) -> int:
        if not m or not n:
            return m + n
        return min(edits(m - 1, n) + 1, edits(m, n - 1) + 1, edits(m - 1, n - 1) + (a[m - 1] != b[n - 1]))

    return edits(len(a), len(b))


def sequence(batch: Batch, i: int) -> tuple:
    return tuple(batch.actions[i][batch.mask[i]].tolist())


def distance(batch: Batch, kind: str, i: int, j: int) -> float:
    a, b = sequence(batch, i), sequence(batch, j)
    if kind == "edit":
        return levenshtein(a, b) / max(len(a), len(b))
    if kind == "overlap":
        a, b = (set(pairwise(row)) for row in (a, b))
        return 1 - len(a & b) / len(a | b) if a | b else 0.0
    old = [float(batch["old_logp"][k][batch.mask[k]].mean()) for k in (i, j)]
    return abs(old[0] - old[1])


def kept(batch: Batch, threshold: float, kind: str = "edit") -> list[bool]:
    keep = [True] * len(batch)
    for prompt in batch["prompt"].unique().tolist():
        rows = [i for i in range(len(batch)) if batch["prompt"][i] == prompt]
        right, wrong = ([i for i in rows if batch["reward"][i] == r] for r in (1, 0))
        pairs = {(i, j): distance(batch, kind, i, j) for i in right for j in wrong}
        for (i, j), d in pairs.items():
            if d < threshold:
                keep[i] = keep[j] = False
        if pairs and not (any(keep[i] for i in right) and any(keep[j] for j in wrong)):
            for pair, d in pairs.items():
                if d == max(pairs.values()):
                    keep[pair[0]] = keep[pair[1]] = True
    return keep


def paper(here: Case, threshold: float, kind: str = "edit", shaped: bool = True) -> torch.Tensor:
    """Row by row; demonstrations with a reward are anchors, those without one do not exist."""
    batch, logp = here.batch, here.logp()
    keep = kept(batch, threshold, kind)
    rows = [i for i in range(len(batch)) if keep[i] and not batch["reward"][i].isnan()]
    total = torch.zeros((), dtype=torch.float64)
    for i in rows:
        group = torch.stack([batch["reward"][k] for k in rows if batch["prompt"][k] == batch["prompt"][i]])
        a = (batch["reward"][i] - group.mean()) / ((group.std() if len(group) > 1 else 0.0) + 1e-6)
        mask = batch.mask[i]
        if batch["origin"][i, 0] == Origin.DEMONSTRATION:
            p = logp[i][mask].exp()
            each = p / (p + 0.1) * a if shaped else logp[i][mask] * a
        else:
            r = (logp[i] - here.clean("old_logp")[i])[mask].exp()
            each = torch.minimum(r * a, r.clamp(0.8, 1.2) * a)
        total = total - each.mean() / len(rows)
    return total


def anchored(seed: int, **options) -> Case:
    """Demonstrations with reward 1 where nothing was solved; the others are not there (their reward is NaN)."""
    here = case(seed, demonstrations=True, **options)
    reward, prompt = here.batch["reward"].clone(), here.batch["prompt"]
    shown = here.batch["origin"][:, 0] == Origin.DEMONSTRATION
    for i in shown.nonzero()[:, 0]:
        if not (reward[(prompt == prompt[i]) & ~shown] == 1).any():
            reward[i] = 1.0
    return replace(here, batch=here.batch.with_rows(reward=reward))


@pytest.mark.parametrize(("kind", "threshold"), [("edit", 0.1), ("edit", 0.7), ("edit", 2.0), ("overlap", 0.9), ("score", 0.4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_gradient_of_the_mask(seed: int, kind: str, threshold: float):
    here = case(seed, prompts=8, actions=2)
    if threshold > 0.1:
        assert not all(kept(here.batch, threshold, kind))
    recipe = make("dagrpo", threshold=threshold, distance=kind, anchors=False)
    assert_same(gradient(recipe, here), autograd(paper(here, threshold, kind), here))


@pytest.mark.parametrize("ratio", ["shaped", "current"])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_the_gradient_with_anchors(threshold: float, ratio: str):
    here = anchored(2, prompts=8, actions=2)
    assert (here.batch["reward"][32:] == 1).any() and here.batch["reward"][32:].isnan().any()
    loss = paper(here, threshold, shaped=ratio == "shaped")
    assert_same(gradient(make("dagrpo", threshold=threshold, anchor_ratio=ratio), here), autograd(loss, here))


def test_with_a_kl_penalty():
    here = case(3, prompts=8)
    gap, mask = here.clean("reference_logp") - here.logp(), here.batch.mask.double()
    keep = torch.tensor(kept(here.batch, 0.7), dtype=torch.float64)
    penalty = (((gap.exp() - gap - 1) * mask).sum(1) / mask.sum(1) * keep).sum() / keep.sum()
    assert_same(gradient(make("dagrpo", threshold=0.7, kl=0.1), here), autograd(paper(here, 0.7) + 0.1 * penalty, here))


def test_a_threshold_of_zero_without_anchors_is_grpo():
    here = case(4)
    assert torch.equal(gradient(make("dagrpo", threshold=0.0, anchors=False), here), gradient(make("grpo", kl=0.0), here))


# -- the mask ----------------------------------------------------------------------------------------------------------
def answers(*rows: tuple[str, float, int]) -> Batch:
    """(letters, reward, prompt)."""
    width = max(len(text) for text, _, _ in rows)
    actions = torch.tensor([[ord(c) for c in text.ljust(width)] for text, _, _ in rows])
    return Batch(
        mask=torch.tensor([[c < len(text) for c in range(width)] for text, _, _ in rows]),
        actions=actions,
        rows={"reward": torch.tensor([r for _, r, _ in rows]), "prompt": torch.tensor([q for _, _, q in rows])},
    )


def test_what_the_mask_keeps():
    batch = answers(
        ("abcdefghij", 1, 0), ("abcdefghix", 0, 0), ("zzzz", 0, 0), ("kkkk", 1, 0), ("abc", 1, 1), ("abd", 0, 1), ("abde", 0, 1)
    )
    assert Distinct(0.2).rows(batch).tolist() == [False, False, True, True, True, True, True]
    # prompt 1: d = 1/3 and 2/4; prompt 0: 0.1, 1, 1, 1. All are below 2: the most distant pairs stay
    assert Distinct(2.0).rows(batch).tolist() == [True, True, True, True, True, False, True]
    assert Distinct(0.0).rows(batch).all()
    alone = answers(("ab", 1, 0), ("ab", 1, 0), ("ab", float("nan"), 0))
    assert Distinct(2.0).rows(alone).all()


def test_distances_by_hand():
    batch = answers(("kitten", 1, 0), ("sitting", 0, 0), ("", 0, 0), ("kitten", 0, 0))
    i, j = torch.tensor([0, 0, 0, 2, 1]), torch.tensor([1, 2, 3, 1, 0])
    assert EditDistance()(batch, i, j).tolist() == [3 / 7, 1.0, 0.0, 1.0, 3 / 7]
    # ki it tt te en, si it tt ti in ng: 2 of 9
    assert OverlapDistance()(batch, i, j).tolist() == pytest.approx([7 / 9, 1.0, 0.0, 1.0, 7 / 9])
    scored = batch.with_columns(old_logp=torch.where(batch.mask, -torch.arange(4.0)[:, None], NAN))
    assert ScoreGap()(scored, i, j).tolist() == [1.0, 0.0, 3.0, 1.0, 1.0]
    with pytest.raises(QuatrainError, match="numbered actions"):
        EditDistance()(replace(batch, actions=torch.randn(4, 7, 2)), i, j)


def test_twins_cancel_on_their_common_actions():
    """A right and a wrong answer that share all but their last action: opposite pushes, whose sum on the common part is 0."""
    table = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = Batch(
        mask=torch.ones(4, 3, dtype=torch.bool),
        actions=torch.tensor([[0, 1, 2], [0, 1, 3], [3, 2, 2], [2, 3, 3]]),
        columns={"state": torch.arange(3).expand(4, 3), "origin": torch.zeros(4, 3, dtype=torch.long)},
        rows={"reward": torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64), "prompt": torch.zeros(4, dtype=torch.long)},
    )
    batch = batch.with_columns(old_logp=plain_logp(table, batch))
    here = Case(batch, TabularPolicy(table))
    twins = Case(batch.take([0, 1]), TabularPolicy(table))
    found = gradient(make("grpo", kl=0.0), twins)
    assert found[:2].abs().max() < 1e-15 and found[2].abs().max() > 0.1
    others = gradient(make("grpo", kl=0.0), Case(batch.take([2, 3]), TabularPolicy(table)))
    assert_same(gradient(make("dagrpo", threshold=0.5, anchors=False), here), others, 1e-13)


# -- anchors -----------------------------------------------------------------------------------------------------------
def test_an_anchor_is_added_only_where_nothing_was_solved():
    task = ToyTask(prompts=4, length=3)
    state = State(task=task, models={"policy": task.policy()})
    starts = [0, 1, 2, 3]
    batch = task.rollout(task.policy(), starts, 2, Sampling(max_actions=3), 0).with_notes(start=[s for s in starts for _ in range(2)])
    edit = AddDemonstrations(when=Solved(invert=True), reward=1.0)
    batch = batch.with_rows(reward=torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0]))
    both = edit(state, batch)
    assert both["prompt"][8:].tolist() == [1, 2] and both["reward"][8:].tolist() == [1.0, 1.0]  # the last problem has no demonstration
    assert (both["origin"][8:] == Origin.DEMONSTRATION).all() and state.spent["demonstrations"] == 2
    assert len(edit(state, batch.with_rows(reward=torch.ones(8)))) == 8


def test_the_shaped_probability_by_autograd():
    p = torch.linspace(0.01, 1, 20, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad((p / (p + 0.1)).sum(), p)[0]
    assert torch.allclose(Shaped(0.1)(p.detach().log(), None, None), (p * slope).detach(), rtol=1e-12)
    with pytest.raises(QuatrainError, match="above 0"):
        Shaped(0.0)
