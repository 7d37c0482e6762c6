"""The worlds: batched and pure, experts that solve them, two ways that are equally good, physics by hand numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.environments.plane.episodes import Episodes
from quatrain.environments.plane.push import Push
from quatrain.environments.plane.reach import Reach
from quatrain.environments.plane.route import Route
from quatrain.environments.plane.task import WORLDS
from quatrain.environments.plane.world import World, chosen_way

ALL = [kind() for kind in WORLDS.values()]
each = pytest.mark.parametrize("world", ALL, ids=list(WORLDS))


def shown(world: World, seeds: Tensor) -> Episodes:
    here, way = Episodes(world, world.start(seeds), world.max_steps), chosen_way(world, seeds)
    while here.going:
        here.advance(world.expert(here.state, way))
    return here


@each
def test_the_expert_solves_every_start(world: World):
    assert shown(world, torch.arange(500)).solved.all()


@each
def test_a_copy_does_not_depend_on_the_others_and_a_state_is_a_value(world: World):
    seeds = torch.arange(40)
    state, action = world.start(seeds), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    snapshot = state.clone()
    after = world.step(state, action)
    assert torch.equal(state, snapshot), "a step changes nothing in place"
    assert torch.equal(world.step(snapshot[7:8], action[7:8])[0], after[7])
    assert torch.equal(world.start(seeds[5:9]), state[5:9]), "a start is a function of its seed"
    assert world.observe(state).shape == (40, world.observation_size) and state.dtype == torch.float32


def test_both_routes_are_taken_equally_often_and_are_as_long():
    world, seeds = Route(), torch.arange(2000)
    here = shown(world, seeds)
    way = world.way(here.state)
    assert abs(float(way.float().mean()) - 0.5) < 0.03 and torch.equal(way, chosen_way(world, seeds))
    length = torch.stack(here.acted).sum(0).float()
    assert abs(float(length[way == 0].mean() - length[way == 1].mean())) < 0.3


def test_the_corridor_stops_and_the_block_fails():
    world = Route()
    state = torch.tensor([[-0.5, 0.1, -1.0], [0.4, 0.0, -1.0], [0.4, 0.35, -1.0]])
    after = world.step(state, torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    assert after[0, 1] == pytest.approx(0.15)
    assert world.failed(after).tolist() == [False, True, False]
    assert world.way(after).tolist() == [-1, -1, 1]


def test_a_disc_leaves_the_hands_way_along_the_line_of_centres():
    world = Push(contact=0.2)
    state = torch.tensor([[0.0, 0.0, 0.25, 0.0, 1.0, 0.0]])
    after = world.step(state, torch.tensor([[1.0, 0.0]]))
    assert after[0].tolist() == pytest.approx([0.1, 0.0, 0.3, 0.0, 1.0, 0.0])
    away = world.step(state, torch.tensor([[-1.0, 0.0]]))
    assert away[0, 2:4].tolist() == pytest.approx([0.25, 0.0])
    assert world.start(torch.arange(300)).view(300, 3, 2).diff(dim=1)[:, 0].norm(dim=1).min() > 0.2


def test_an_action_is_no_longer_than_one_step():
    world = Reach()
    state = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(3, 1)
    after = world.step(state, torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.3, 0.0]]))
    assert after[:, :2].norm(dim=1).tolist() == pytest.approx([0.1, 0.1, 0.03])
