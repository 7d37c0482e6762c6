"""Groups that are sampled in both modes: the first action is given, and counts as the policy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, group_index, group_sum
from quatrain.errors import QuatrainError
from quatrain.models.opened import Opened, only_token
from quatrain.parts.control import first_action
from quatrain.parts.modes import DIRECT, THINKING, preferred_mode
from quatrain.protocols import Sampling
from quatrain.rollout.sources import OnPolicy, charge


@dataclass(frozen=True)
class BothModes:
    """Half of each prompt's group opens with the token of the thinking mode, half with the other's; ``mode`` [N] says which.

    source    what is sampled, and how; its group is shared out evenly.
    openings  (thinking, direct): texts of one token each. A completion is judged without it.

    The given token becomes the first action: probability 1 when sampled, so that ``old_logp`` has to be scored afterwards. A
    policy without texts is sampled as it is: ``Modes`` then says that it has one mode.
    """

    source: OnPolicy
    openings: tuple[str, str] = ("<think>", "<no_think>")

    def __post_init__(self) -> None:
        if isinstance(self.source.group, int) and self.source.group % 2:
            raise QuatrainError("a group is shared out to two modes", given=f"group={self.source.group}", expected="an even number")

    def provides(self, task: Any) -> set[str]:
        return self.source.provides(task)

    @torch.no_grad()
    def __call__(self, state: Any) -> Batch:
        source, policy = self.source, state.models[self.source.model]
        if not hasattr(policy, "encode"):
            return source(state)
        starts, half = state.next_starts(source.prompts), source.group // 2
        sampling = Sampling(source.temperature, source.top_p, source.top_k, source.max_actions)
        parts = []
        for mode, text in ((THINKING, self.openings[0]), (DIRECT, self.openings[1])):
            token = only_token(policy, text)
            batch = state.task.rollout(Opened(policy, [token]), starts, half, sampling, state.draw(f"sample/{mode}"))
            batch = batch.with_notes(start=[start for start in starts for _ in range(half)])
            charge(state, batch)  # the given token is not sampled
            modes = torch.full((len(batch),), mode, dtype=torch.long, device=batch.device)
            parts.append(opening_as_action(batch, token, policy.version).with_rows(mode=modes))
        return Batch.cat(parts)


def opening_as_action(batch: Batch, token: int, version: int) -> Batch:
    """The last token of every context becomes the trajectory's first action: [N, T] → [N, T+1]. Its log-probabilities are 0.

    Raises QuatrainError for a batch from truncated sampling: the given token may lie outside what could be sampled.
    """
    if "support" in batch:
        raise QuatrainError("a given first action needs the whole distribution", given="top_k or top_p", fix="top_k=0 top_p=1")
    context = batch.contexts["policy"]
    kept = context["mask"] & (context["mask"].long().cumsum(1) < context["mask"].sum(1, keepdim=True))
    first = {"present": True, "version": version}

    def lead(value: Tensor, filling: float) -> Tensor:
        return torch.cat([torch.full_like(value[:, :1], filling), value], 1)

    batch = Batch(
        mask=lead(batch.mask, True),
        actions=lead(batch.actions, token),
        columns={name: lead(value, first.get(name, 0)) for name, value in batch.columns.items()},
        rows=batch.rows,
        contexts=batch.contexts,
        notes=batch.notes,
    )
    return batch.with_context("policy", tokens=context["tokens"].masked_fill(~kept, 0), mask=kept)


@dataclass(frozen=True)
class Modes:
    """``mode`` [N]: as the source forced it; thinking everywhere, where it forced none."""

    needs = ("prompt",)
    provides = ("mode",)

    def __call__(self, state: Any, batch: Batch) -> Batch:
        return batch if "mode" in batch else batch.with_rows(mode=torch.full_like(batch["prompt"], THINKING))


@dataclass(frozen=True)
class HybridAccuracy:
    """Measures ``modes/accuracy``: for what share of prompts is the likelier opening the one of the mode that pays more?

    By ``old_logp`` of the openings and ``preferred_mode``. ``modes/direct``: the share whose likelier opening is the direct one.
    Prompts without both modes do not count.
    """

    margin: float = 0.2
    needs = ("prompt", "mode", "reward", "old_logp")

    def __call__(self, state: Any, batch: Batch) -> Batch:
        index, count = group_index(batch)
        opening = torch.where(first_action(batch), batch["old_logp"], 0.0).sum(1).double()
        of_mode = [batch["mode"] == mode for mode in (THINKING, DIRECT)]
        size = [group_sum(here.double(), index, count) for here in of_mode]
        both = (size[0] > 0) & (size[1] > 0)
        mean = [group_sum(torch.where(here, opening, 0.0), index, count) / n.clamp(min=1) for here, n in zip(of_mode, size, strict=True)]
        chosen = torch.where(mean[0] > mean[1], THINKING, DIRECT)
        wanted = torch.zeros(count, dtype=torch.long, device=batch.device).index_copy(0, index, preferred_mode(batch, self.margin))
        if both.any():
            state.measure(
                {"modes/accuracy": ((chosen == wanted)[both].sum(), both.sum()), "modes/direct": (chosen[both].sum(), both.sum())}
            )
        return batch
