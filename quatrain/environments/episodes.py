"""What was said in an episode, token by token, until it becomes rows of a batch. Tokens are written once and never read again as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.environments.text import PLANNER, Start

OURS = ("version", "origin", "terminated", "truncated", "present")  # columns of one turn that are made anew for the whole episode


@dataclass
class Episode:
    """One row in the making.

    start, seed  where it began, and the seed of its row; caller: the episode that asked for it.
    state        the environment's, now.
    prompt       [P] token ids; tokens, acts, turns [T]: what followed it, whether the policy chose it, and in which turn.
    rewards      index of a token → reward.
    columns      for each turn: (index of its first token, name → [length, …]).
    text         what followed the prompt, for people.
    """

    start: Start
    seed: int
    prompt: list[int]
    caller: Episode | None = None
    state: Any = None
    tokens: list[int] = field(default_factory=list)
    acts: list[bool] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)
    columns: list[tuple[int, Mapping[str, Tensor]]] = field(default_factory=list)
    text: str = ""
    turn: int = 0
    calls: int = 0
    ended: bool = False
    cut: bool = False
    waits: bool = False  # for an episode that it has called

    def __post_init__(self) -> None:
        self.state = self.start.state if self.state is None else self.state

    @property
    def open(self) -> bool:
        return not (self.ended or self.cut)

    @property
    def actions(self) -> int:
        return sum(self.acts)

    @property
    def context(self) -> list[int]:
        return [*self.prompt, *self.tokens]

    @property
    def role(self) -> int:
        return PLANNER if self.caller is None else 1 + self.caller.role

    @property
    def root(self) -> Episode:
        return self if self.caller is None else self.caller.root

    def act(self, tokens: Sequence[int], text: str, columns: Mapping[str, Tensor] | None = None) -> None:
        """A turn of the policy's."""
        self.columns.append((len(self.tokens), columns or {}))
        self._write(tokens, text, True)

    def observe(self, tokens: Sequence[int], text: str) -> None:
        """The environment's answer: present in the context, never an action; it belongs to the turn that it answers."""
        self._write(tokens, text, False)
        self.turn += 1

    def reward(self, value: float) -> None:
        """Add to the reward of the last action."""
        last = max(index for index, acts in enumerate(self.acts) if acts)
        self.rewards[last] = self.rewards.get(last, 0.0) + value

    def _write(self, tokens: Sequence[int], text: str, acts: bool) -> None:
        self.tokens += tokens
        self.acts += [acts] * len(tokens)
        self.turns += [self.turn] * len(tokens)
        self.text += text


def turn_columns(batch: Batch, row: int, length: int) -> dict[str, Tensor]:
    """The first ``length`` actions of one row of a sampled turn: log-probabilities, support, temperature."""
    return {name: value[row, :length] for name, value in batch.columns.items() if name not in OURS}


def to_batch(episodes: Sequence[Episode], origin: int, version: int, device: torch.device, rewarded: bool = True) -> Batch:
    """Rows of episodes [N, T]: mask False and ``present`` True on every observation token.

    Columns: turn, present, version, origin, terminated, truncated, those of the turns and, if ``rewarded``, rewards (of a turn, at its
    last action). Rows: prompt, seed; ``role``, ``episode`` (the seed of the row that the user asked) and ``parent`` (that of the row
    that called, −1 for none); reward, if rewarded.
    """
    tokens = _padded([episode.tokens for episode in episodes], torch.long)
    mask = _padded([episode.acts for episode in episodes], torch.bool)
    present = _padded([[1] * len(episode.tokens) for episode in episodes], torch.bool)
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    columns = {
        "turn": _padded([episode.turns for episode in episodes], torch.long),
        "present": present,
        "version": torch.full_like(tokens, version).masked_fill(~mask, 0),
        "origin": torch.full_like(tokens, origin).masked_fill(~mask, 0),
        "terminated": last & torch.tensor([episode.ended for episode in episodes])[:, None],
        "truncated": last & torch.tensor([episode.cut for episode in episodes])[:, None],
        **_laid_out(episodes, tokens.shape),
    }
    rows = {
        "prompt": torch.tensor([episode.start.id for episode in map(_root, episodes)], dtype=torch.int64),
        "seed": torch.tensor([episode.seed for episode in episodes], dtype=torch.int64),
        "role": torch.tensor([episode.role for episode in episodes], dtype=torch.int64),
        "episode": torch.tensor([episode.root.seed for episode in episodes], dtype=torch.int64),
        "parent": torch.tensor([-1 if episode.caller is None else episode.caller.seed for episode in episodes], dtype=torch.int64),
    }
    if rewarded:
        columns["rewards"] = torch.zeros(tokens.shape)
        for row, episode in enumerate(episodes):
            for index, value in episode.rewards.items():
                columns["rewards"][row, index] = value
        rows["reward"] = columns["rewards"].sum(1)
    prompt = _padded([episode.prompt for episode in episodes], torch.long)
    seen = _padded([[1] * len(episode.prompt) for episode in episodes], torch.bool)
    batch = Batch(mask, tokens.masked_fill(~present, 0), columns, rows, {"policy": {"tokens": prompt, "mask": seen}})
    return batch.to(device).with_notes(
        start=[episode.root.start for episode in episodes],
        prompt=[readable(episode.start.prompt) for episode in episodes],
        completion=[episode.text for episode in episodes],
        answer=[episode.start.answer for episode in episodes],
    )


def readable(prompt: Any) -> str:
    """A start's prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(part["content"] if isinstance(part, Mapping) else str(part) for part in prompt)


def _root(episode: Episode) -> Episode:
    return episode.root


def _laid_out(episodes: Sequence[Episode], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The turns' own columns at their places, 0 elsewhere; a support is as wide as the widest."""
    found: dict[str, Tensor] = {}
    turns = [(row, first, part) for row, episode in enumerate(episodes) for first, part in episode.columns]
    parts = [(row, first, name, value) for row, first, part in turns for name, value in part.items()]
    for name in dict.fromkeys(name for _, _, name, _ in parts):
        mine = [(row, first, value) for row, first, other, value in parts if other == name]
        rest = [max(value.shape[axis] for _, _, value in mine) for axis in range(1, mine[0][2].ndim)]
        whole = torch.zeros((*shape, *rest), dtype=mine[0][2].dtype)
        for row, first, value in mine:
            whole[(row, slice(first, first + len(value)), *map(slice, value.shape[1:]))] = value.cpu()
        found[name] = whole
    return found


def _padded(rows: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)
