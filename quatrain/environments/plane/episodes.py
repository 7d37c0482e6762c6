"""Episodes in a world of the plane, thousands of copies in step: of a policy, and of the scripted expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.environments.decisions import decide
from quatrain.environments.plane.world import World, chosen_way
from quatrain.protocols import Decision


@dataclass
class Episodes:
    """E episodes until all have ended or ``limit`` decisions are made.

    state [E, S] is the present one. What each decision brought is a list over T: acted [E] bool, reward [E], observations before it
    [E, D]; solved [E] and cut [E] say how an episode ended.
    """

    world: World
    state: Tensor
    limit: int
    acted: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alive = torch.ones(len(self.state), dtype=torch.bool)
        self.solved = torch.zeros(len(self.state), dtype=torch.bool)

    @property
    def going(self) -> bool:
        return len(self.acted) < self.limit and bool(self.alive.any())

    def advance(self, action: Tensor) -> None:
        """Every living copy does its action [E, 2]; the others stay as they ended."""
        after = self.world.step(self.state, action)
        solved, failed = self.world.solved(after), self.world.failed(after)
        reward = self.world.distance(self.state) - self.world.distance(after) + solved.float()
        self.acted.append(self.alive)
        self.rewards.append(torch.where(self.alive, reward, 0.0))
        self.seen.append(torch.where(self.alive[:, None], self.world.observe(self.state), 0.0))
        self.state = torch.where(self.alive[:, None], after, self.state)
        self.solved = self.solved | (solved & self.alive)
        self.alive = self.alive & ~solved & ~failed

    def observations(self) -> Tensor:
        """[E, T+1, D] before each decision and after an episode's last; zeros beyond."""
        length, final = torch.stack(self.acted).sum(0), self.world.observe(self.state)
        seen = torch.stack([*self.seen, torch.zeros_like(final)], 1)
        return seen.index_put((torch.arange(len(final)), length), final)


@torch.no_grad()
def episodes(world: World, policy: Any, seeds: Tensor, limit: int, seed: int, greedy: bool = False) -> tuple[Episodes, list[Decision]]:
    """One episode of the policy from each start [E]; noise from ``seed``."""
    here, generator, made = Episodes(world, world.start(seeds), limit), torch.Generator().manual_seed(seed), []
    while here.going:
        made.append(decide(policy, world.observe(here.state), generator, greedy))
        here.advance(made[-1].executed)
    return here, made


def batch_of(here: Episodes, made: Sequence[Decision], seeds: Tensor, version: int) -> Batch:
    """N episodes × (T decisions of K actions), padded on the right.

    Rewards and endings are at a decision's last action, which alone takes time (``duration`` 1, the others 0; absent where K = 1).
    The observations are those before the decision, for each of its actions.
    """
    k = made[0].logp.shape[1]
    mask = torch.stack(here.acted, 1).repeat_interleave(k, 1)

    def per_action(values: list[Tensor]) -> Tensor:
        """[E, T·K, …] of T times [E, K, …], zero where nobody acted."""
        value = torch.stack(values, 1).flatten(1, 2)
        return torch.where(mask.reshape(*mask.shape, *[1] * (value.ndim - 2)), value, torch.zeros_like(value))

    def at_last(value: Tensor) -> Tensor:
        """[E, T] at the last action of each decision."""
        found = value.new_zeros(mask.shape)
        found[:, k - 1 :: k] = value
        return found

    logp, reward = per_action([one.logp for one in made]), torch.stack(here.rewards, 1)
    last = mask & (torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1)
    columns: Mapping[str, Tensor] = {
        "rewards": at_last(reward),
        "terminated": last & ~here.alive[:, None],
        "truncated": last & here.alive[:, None],
        "behaviour_logp": logp,
        "old_logp": logp,
        "version": torch.full(mask.shape, version),
        "origin": torch.full(mask.shape, Origin.POLICY),
        **{name: per_action([one.columns[name] for one in made]) for name in made[0].columns},
        **({"duration": at_last(torch.ones_like(reward))} if k > 1 else {}),
    }
    seen = here.observations()
    seen = torch.cat([seen[:, :-1].repeat_interleave(k, 1), seen[:, -1:]], 1)
    # An episode's final observation stands after its last action, wherever a longer one's row goes on.
    end = mask.sum(1)
    seen = seen.index_put((torch.arange(len(seen)), end), here.world.observe(here.state))
    return Batch(
        mask=mask,
        actions=per_action([one.actions for one in made]),
        columns=columns,
        rows={"reward": reward.sum(1), "prompt": seeds, "solved": here.solved, "way": here.world.way(here.state)},
        contexts={"policy": {"observations": seen}},
    )


def demonstrations(world: World, seeds: Tensor, disturbance: float, seed: int) -> Batch:
    """One episode of the expert from each start [N], by a way of its own; the actions are what it wanted.

    disturbance  standard deviation of what is added to what is done, so that the data shows how to come back (Laskey et al. 2017,
                 DART, arXiv 1703.09327).
    """
    here, way = Episodes(world, world.start(seeds), world.max_steps), chosen_way(world, seeds)
    generator, wanted = torch.Generator().manual_seed(seed), []
    while here.going:
        wanted.append(world.expert(here.state, way))
        here.advance(wanted[-1] + disturbance * torch.randn(wanted[-1].shape, generator=generator))
    mask = torch.stack(here.acted, 1)
    return Batch(
        mask=mask,
        actions=torch.where(mask[..., None], torch.stack(wanted, 1), 0.0),
        columns={"origin": torch.full(mask.shape, Origin.DEMONSTRATION)},
        rows={"prompt": seeds, "way": here.world.way(here.state)},
        contexts={"policy": {"observations": here.observations()}},
    )
