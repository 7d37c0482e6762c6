"""Contrasts of groups, by hand numbers; groups without a contrast say nothing."""

from __future__ import annotations

import torch

from quatrain.batch import Batch
from quatrain.environments.tool_choice import CUES, TOOLS, ToolChoice
from quatrain.search.library import Library
from quatrain.search.revisions import Contrasts, RandomRules, Revise, ballots, contrasts, features
from quatrain.training.state import State


def batch(reward: list[float], prompt: list[int], cues: list[list[int]], actions: list[int]) -> Batch:
    """One decision per row, the cues [N, K] that it shows."""
    n = len(reward)
    rows = {"reward": torch.tensor(reward), "prompt": torch.tensor(prompt)}
    return Batch(torch.ones(n, 1, dtype=torch.bool), torch.tensor(actions)[:, None], {"state": torch.tensor(cues)[:, None]}, rows)


def state() -> State:
    task = ToolChoice()
    return State(task, {"policy": task.network()})


def test_features_and_contrasts_by_hand():
    here = batch([1, 0, 0, 1], [5, 5, 5, 9], [[0, 2]] * 3 + [[1, 1]], [1, 1, 0, 0])
    chosen = features(here, (3, 2))
    assert chosen.tolist() == [[0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]
    expected = torch.tensor([[-0.5, 0.5, 0, 0, -0.5, 0.5], [0, 0, 1, 0, 0, 0]], dtype=torch.float64)  # 1 − ½, 0 − ½; alone, won
    assert torch.equal(contrasts(chosen, here), expected)


def test_a_failure_alone_says_nothing_or_is_blamed():
    here = batch([0], [1], [[0, 1]], [1])
    chosen = features(here, (2, 2))
    assert not contrasts(chosen, here).any()
    assert contrasts(chosen, here, blame=True).tolist() == [[0, -1, 0, -1]]


def test_what_is_no_action_is_no_feature():
    here = batch([1], [1], [[0, 1]], [1])
    cut = Batch(here.mask & False, here.actions, here.columns, here.rows)
    assert not features(cut, (2, 2)).any()


def test_each_group_votes_for_its_largest_contrasts():
    gap = torch.tensor([[0.2, -0.9, 0.5], [0.0, -0.1, 0.0]], dtype=torch.float64)
    assert ballots(gap, torch.zeros_like(gap), 2).tolist() == [0, -2, 1]
    assert ballots(gap, torch.zeros_like(gap), 9).tolist() == [1, -2, 1]


def test_the_sign_of_the_difference_chooses_the_operation():
    here, won, run = Revise(Contrasts()), [[0, 12]], state()
    good = batch([1, 0], [1, 1], won * 2, [3, 4])
    (library,) = here(run, Library(), good)
    assert {rule.place: rule.weight for rule in library.rules} == {(0, 3): 1, (12, 3): 1, (0, 4): -1, (12, 4): -1}
    assert library.rules[0].text == f"when {CUES[0]}, use the {TOOLS[3]}" and "do not use" in library.find((0, 4)).text
    (stronger,) = here(run, library, good)
    assert {rule.weight for rule in stronger.rules} == {2.0, -2.0} and len(stronger) == 4
    (gone,) = here(run, library, batch([0, 1], [1, 1], won * 2, [3, 4]))
    assert len(gone) == 0
    limited = library
    for _ in range(9):
        limited = (here(run, limited, good) or [limited])[-1]
    assert {rule.weight for rule in limited.rules} == {4.0, -4.0}


def test_groups_without_a_contrast_give_no_operations():
    same = batch([1, 1, 0, 0, 1], [1, 1, 2, 2, 3], [[0, 12]] * 5, [0, 1, 2, 3, 4])
    for by in (Contrasts(), RandomRules()):
        assert Revise(by)(state(), Library(), same) == []
        assert len(Revise(by).shown(same)) == 0
    (alone,) = Revise(Contrasts(), alone=True)(state(), Library(), same)
    assert {rule.place for rule in alone.rules} == {(0, 4), (12, 4)}, "a whole group that agrees is still skipped"


def test_groups_that_disagree_cancel():
    mixed = batch([1, 0, 0, 1], [1, 1, 2, 2], [[0, 12]] * 4, [3, 4, 3, 4])
    assert Revise(Contrasts())(state(), Library(), mixed) == []


def test_random_rules_depend_on_the_run_and_the_draw():
    mixed = batch([1, 0], [1, 1], [[0, 12]] * 2, [3, 4])
    run = state()
    (first,), (second,), (again,) = (Revise(RandomRules())(one, Library(), mixed) for one in (run, run, state()))
    assert len(first) == 4 and first == again != second
