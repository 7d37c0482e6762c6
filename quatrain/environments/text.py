"""What a text environment is: a state that is a value, stepped with the text of a turn. Tools and sub-agents are steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

PLANNER, WORKER = 0, 1  # values of the row ``role``: who was asked by the user, and who was asked by another


@dataclass(frozen=True)
class Start:
    """Where an episode begins.

    id      unique within the split: the group key of its rollouts.
    state   the environment's state: a value that nobody changes in place, so that keeping it is the snapshot.
    prompt  what the policy reads first: a text, chat messages, or the token ids of an earlier episode's beginning.
    answer  what would be right, where there is one: for people.
    data    whatever else the environment knows (level, kind).
    """

    id: int
    state: Any
    prompt: str | Sequence[Mapping[str, str]] | tuple[int, ...]
    answer: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What an environment answers to a turn.

    state        after the turn.
    observation  what the policy reads next; of an episode that has ended: what its caller is told, if it has one.
    reward       of the turn; finite.
    ended        for good: no value follows.
    call         another episode, to be played by the same policy in a fresh context before this one goes on (a sub-agent). What it
                 is told goes to ``TextEnvironment.resume``; ``observation`` is then not looked at.
    """

    state: Any
    observation: str = ""
    reward: float = 0.0
    ended: bool = False
    call: Start | None = None


@dataclass(frozen=True)
class Limits:
    """How long an episode may be; what is longer is cut (truncated).

    turns        of an episode.
    turn_tokens  of a turn, its stop text or end-of-sequence token included.
    context      tokens of the prompt, turns and observations together.
    """

    turns: int = 8
    turn_tokens: int = 32
    context: int = 384


class TextEnvironment(Protocol):
    """An environment of texts. Stateless itself: what it returns depends on its arguments and its options alone.

    limits  of an episode.
    stop    texts that end a turn; the end-of-sequence token always does. The text of a turn has them still.

    Optional methods. ``expert(state) -> str``: the turn, stop text included, that somebody who knows would say: demonstrations.
    ``resume(state, told) -> Step``: what an episode that has called another becomes when that one has ended; ``told`` is its last
    observation, empty if it was cut. ``slip(state, random) -> str``: a typical mistake in place of the expert's turn, and ``lessons``,
    the tasks that a beginner has seen: an environment with these two has an embedded model of its own; ``slips``: its share of mistakes.
    """

    limits: Limits
    stop: tuple[str, ...]

    def start(self, split: str, index: int) -> Start:
        """The start at that position of an endless sequence: ``train`` and ``heldout`` have none in common."""
        ...

    def step(self, state: Any, text: str) -> Step:
        """One turn. A turn that makes no sense is answered, too: with an observation that says so."""
        ...
