"""A policy whose rollouts are trees: the leaves with their beginnings duplicated, and the node of every action.

Axes: N leaves, T actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, spread
from quatrain.protocols import Sampling
from quatrain.rollout.branching import Branching, Path, Tree
from quatrain.seeds import mix


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
        block = max(1, (self.policy.max_rows or len(seeds)) // group)  # trees that grow at the same time
        parts = [slice(start, start + block) for start in range(0, len(prompts), block)]
        return Batch.cat([self._grown(prompts[part], group, sampling, seeds[part.start * group : part.stop * group]) for part in parts])

    def _grown(self, prompts: Sequence[Sequence[int]], group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        keys, decoding = seeds.tolist(), self.policy.decoding(sampling)
        decoding.room = None  # all paths stand at a boundary when they branch: none of them waits
        trees = [Tree(self.plan, range(k * group, (k + 1) * group), mix(keys[k * group], 0)) for k in range(len(prompts))]
        ids = dict(zip(range(0, len(keys), group), decoding.admit(prompts, seeds[::group]), strict=True))  # slot → row
        while going := [path for tree in trees for path in tree.going]:
            if new := [path for path in going if path.slot not in ids]:
                chosen = [path.slot for path in new]
                begins = [path.begin for path in new]
                ids |= zip(chosen, decoding.fork([ids[path.parent] for path in new], seeds[chosen], begins), strict=True)
            decoding.advance(self.plan.segment)
            said = decoding.read([ids[path.slot] for path in going])
            ended = (~said.truncated | (said.mask.sum(1) == sampling.max_actions)).tolist()
            for path, length, logp, over in zip(going, said.mask.sum(1).tolist(), said.logp.sum(1).tolist(), ended, strict=True):
                path.length, path.logp, path.ended = length, logp, over
            for tree, over in zip(trees, self._ended(going, group, len(trees)), strict=True):
                tree.branch(over)
        paths = [path for tree in trees for path in tree.paths]
        samples = decoding.take([ids[path.slot] for path in paths])
        batch = self.policy.sampled([prompt for prompt in prompts for _ in range(group)], samples, sampling, seeds)
        share = torch.tensor([path.share for path in paths], dtype=torch.float64, device=batch.device)
        return batch.with_columns(node=node_of(paths, keys, self.plan.segment, batch.mask)).with_rows(share=share)

    @staticmethod
    def _ended(paths: list[Path], group: int, trees: int) -> list[int]:
        """How many paths of each tree have ended."""
        found = [0] * trees
        for path in paths:
            found[path.slot // group] += path.ended
        return found


def node_of(paths: Sequence[Path], keys: Sequence[int], segment: int, mask: Tensor) -> Tensor:
    """[N, T] a key of the segment that each action belongs to: of whose it is and of its number. ``paths`` in order of their slots."""
    position = torch.arange(mask.shape[1], device=mask.device)
    owner = torch.arange(len(paths), device=mask.device)[:, None].repeat(1, len(position))
    for path in paths:  # parents before their children
        owner[path.slot, : path.begin] = owner[path.parent, : path.begin]
    names = torch.tensor([[mix(key, number) for number in range(-(-len(position) // segment))] for key in keys], device=mask.device)
    return names[owner, position // segment].masked_fill(~mask, 0)
