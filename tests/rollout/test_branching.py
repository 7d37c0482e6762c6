"""How a budget of leaves is shared out, without a policy."""

from __future__ import annotations

from random import Random

import pytest

from quatrain.errors import QuatrainError
from quatrain.rollout.branching import Branching, Tree, allot


def advance(tree: Tree, count: int, logp: float = -1.0, ends: tuple[int, ...] = ()) -> None:
    """Every path gets ``count`` actions; those of the given slots end; then the tree branches."""
    going = tree.going
    for path in going:
        path.length += count
        path.logp += logp * (1 + path.slot) * count
        path.ended = path.slot in ends
    tree.branch(len(going) - len(tree.going))


@pytest.mark.parametrize("total", range(3, 20))
def test_everyone_gets_one_and_the_rest_by_weight(total: int):
    weights = [0.6, 0.3, 0.1]
    found = allot(weights, total)
    assert sum(found) == total and all(abs(count - 1 - weight * (total - 3)) < 1 for count, weight in zip(found, weights, strict=True))


def test_two_children_until_the_budget_is_used():
    tree = Tree(Branching(2, 2), range(8), 0)
    sizes = [len(tree.going)]
    for _ in range(3):
        advance(tree, 2)
        sizes.append(len(tree.going))
    assert sizes == [2, 4, 8, 8] and [path.share for path in tree.paths] == [0.125] * 8
    assert [(path.parent, path.begin) for path in tree.paths] == [(0, 0), (0, 0), (0, 2), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4)]


def test_what_an_ended_leaf_frees_goes_to_the_others():
    """Two paths, one ends: the other has 2·(1 + 1) = 4 children; with a budget of four only three of them fit."""
    tree = Tree(Branching(1, 2), range(8), 0)
    advance(tree, 1, ends=(0,))
    assert len(tree.going) == 4 and [path.share for path in tree.paths] == [0.5, 0.125, 0.125, 0.125, 0.125]
    small = Tree(Branching(1, 2), range(4), 0)
    advance(small, 1, ends=(0,))
    assert len(small.going) == 3 and sum(path.share for path in small.paths) == pytest.approx(1.0)


def test_likelier_paths_first_or_last():
    found = {}
    for shares in ("even", "likely", "unlikely"):
        tree = Tree(Branching(1, 2, shares=shares, temperature=0.5), range(10), 0)
        advance(tree, 1)
        advance(tree, 1)  # slots 0 … 3 have log-probabilities −2, −4, −4, −6
        found[shares] = [sum(path.begin == 2 and path.parent == slot for path in tree.paths) for slot in range(4)]
    assert found["likely"][0] > found["even"][0] and found["unlikely"][3] > found["even"][3] == 1
    assert all(sum(counts) == 4 for counts in found.values())


@pytest.mark.parametrize("restart", ["boundary", "root"])
def test_a_budget_that_is_left_restarts_at_boundaries(restart: str):
    for seed in range(20):
        tree = Tree(Branching(3, 2, restart=restart), range(7), seed)
        advance(tree, 3)
        advance(tree, 2, ends=tuple(range(7)))  # four leaves of five actions
        late = tree.paths[4:]
        assert len(late) == 3 and [path.share for path in late] == [0.0] * 3 and sum(path.share for path in tree.paths) == 1.0
        assert all(path.begin in ((0,) if restart == "root" else (0, 3)) and path.length == path.begin for path in late)
        advance(tree, 5, ends=tuple(range(7)))
        assert not tree.going and len(tree.paths) == 7
    begins = {path.begin for seed in range(20) for path in _restarted(seed)}
    assert begins == {0, 3}


def _restarted(seed: int) -> list:
    tree = Tree(Branching(3, 2), range(7), seed)
    advance(tree, 3)
    advance(tree, 2, ends=tuple(range(7)))
    return tree.paths[4:]


def test_the_roots_width_is_drawn():
    plan = Branching(children=2, first=8)
    assert {plan.width(Random(seed)) for seed in range(200)} == set(range(2, 9))
    assert Branching(children=3).width(Random(0)) == 3
    assert len(Tree(plan, range(3), 1).going) <= 3


def test_bad_plans():
    for options in ({"segment": 0}, {"children": 0}, {"shares": "more"}, {"restart": "never"}, {"temperature": 0.0}):
        with pytest.raises(QuatrainError, match=r"tree has segments|way to branch"):
            Branching(**options)
