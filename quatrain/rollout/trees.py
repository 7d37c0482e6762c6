"""A policy whose rollouts are trees: the leaves with their beginnings duplicated, and the node of every action.

Axes: N leaves, T actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.protocols import Sampling
from quatrain.rollout.branching import Branching, Path, Tree
from quatrain.tasks.hashing import mix


@dataclass(frozen=True)
class Trees:
    """policy → the policy, its groups sampled as trees. For ``OnPolicy(through=…)``. A policy that samples no texts samples as it does."""

    plan: Branching

    def __call__(self, policy: Any) -> Branched:
        return Branched(policy, self.plan)


@dataclass(frozen=True)
class Nodes:
    """``node`` [N, T]: as the source made it; where it made no trees, every trajectory is one node of its own."""

    provides = ("node",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        return batch if "node" in batch else batch.with_columns(node=spread(torch.arange(len(batch), device=batch.device), batch))


class Branched:
    """A policy whose groups are the leaves of trees; in all else it is the policy."""

    def __init__(self, policy: Any, plan: Branching):
        self.policy, self.plan = policy, plan

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def sample(self, prompts: Sequence[Sequence[int]], group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        """``group`` leaves of each tokenised prompt, with the columns of the policy's own ``sample``; seeds [N] int64, one per leaf.

        ``node`` [N, T]: the segment that an action belongs to, equal for all leaves that share it. ``share`` [N]: what part of its
        prompt's probability a leaf stands for. Σ share·f over a prompt's leaves is an unbiased estimate of the mean of f over
        independent samples; the plain mean is not, where leaves end early and the others branch on.
        """
        keys = seeds.tolist()
        trees = [Tree(self.plan, range(k * group, (k + 1) * group), mix(keys[k * group], 0)) for k in range(len(prompts))]
        owners = [prompt for prompt in prompts for _ in range(group)]
        parts: list[tuple[list[int], list[int], Batch]] = []
        while paths := [path for tree in trees for path in tree.going]:
            before = [len(tree.going) for tree in trees]
            left = {path.slot: min(self.plan.segment, sampling.max_actions - len(path.actions)) for path in paths}
            for count in sorted(set(left.values())):
                parts.append(self._advance([path for path in paths if left[path.slot] == count], count, owners, sampling, keys))
            for tree, count in zip(trees, before, strict=True):
                tree.branch(count - len(tree.going))
        return _joined([path for tree in trees for path in tree.paths], parts, keys, self.plan.segment, owners)

    def _advance(
        self, paths: list[Path], count: int, owners: list[Sequence[int]], sampling: Sampling, keys: list[int]
    ) -> tuple[list[int], list[int], Batch]:
        """(slots, where they stand, their next ``count`` actions or fewer); the paths have them now, too."""
        slots, begins = [path.slot for path in paths], [len(path.actions) for path in paths]
        part = self.policy.sample(
            [[*owners[path.slot], *path.actions] for path in paths],
            1,
            replace(sampling, max_actions=count),
            torch.tensor([mix(keys[slot], begin) if begin else keys[slot] for slot, begin in zip(slots, begins, strict=True)]),
        )
        ended = part["terminated"].any(1).tolist()
        for row, (path, length) in enumerate(zip(paths, part.lengths.tolist(), strict=True)):
            path.actions += part.actions[row, :length].tolist()
            path.logp += part["behaviour_logp"][row, :length].tolist()
            path.ended = ended[row] or len(path.actions) >= sampling.max_actions
        return slots, begins, part


def _joined(
    paths: list[Path], parts: list[tuple[list[int], list[int], Batch]], keys: list[int], segment: int, owners: list[Sequence[int]]
) -> Batch:
    """The leaves from the stretches that each of them sampled: what comes before its own is its parent's."""
    device, lengths = parts[0][2].device, [len(path.actions) for path in paths]
    position = torch.arange(max(lengths), device=device)
    mask = position < torch.tensor(lengths, device=device)[:, None]
    owner = torch.arange(len(paths), device=device)[:, None].repeat(1, len(position))
    for path in paths:  # parents before their children
        owner[path.slot, : path.begin] = owner[path.parent, : path.begin]
    owner = owner.masked_fill(~mask, 0)

    def gathered(name: str) -> Tensor:
        values = [part.actions if name == "actions" else part.columns[name] for _, _, part in parts]
        wide = [max(value.shape[axis] for value in values) for axis in range(2, values[0].ndim)]
        own = values[0].new_zeros((len(paths), len(position), *wide))
        for (slots, begins, part), value in zip(parts, values, strict=True):
            rows, steps = part.mask.nonzero(as_tuple=True)
            at = (torch.tensor(slots, device=device)[rows], torch.tensor(begins, device=device)[rows] + steps)
            own[(*at, *(slice(0, extent) for extent in value.shape[2:]))] = value[rows, steps]
        found = own[owner, position]
        return found.masked_fill(~mask.view(*mask.shape, *[1] * (found.ndim - 2)), 0)

    columns = {name: gathered(name) for name in parts[0][2].columns}
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    columns |= {"terminated": last & columns["terminated"], "truncated": last & ~columns["terminated"]}
    names = torch.tensor([[mix(key, number) for number in range(-(-len(position) // segment))] for key in keys], device=device)
    columns["node"] = names[owner, position // segment].masked_fill(~mask, 0)
    first = parts[0][2]  # one root or more of every prompt
    rows = {name: value[:1].expand(len(paths), *value.shape[1:]) for name, value in first.rows.items() if name != "seed"}
    rows["seed"] = torch.tensor(keys, device=device)
    rows["share"] = torch.tensor([path.share for path in paths], dtype=torch.float64, device=device)
    longest = max(map(len, owners))
    tokens = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in owners], device=device)
    seen = torch.arange(longest, device=device) < torch.tensor([len(prompt) for prompt in owners], device=device)[:, None]
    return Batch(mask, gathered("actions"), columns, rows, {"policy": {"tokens": tokens, "mask": seen}})
