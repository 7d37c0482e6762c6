"""The *toolworld* laboratory: questions that need tools, typed calls, long noisy answers, and a sub-agent to read them.

    a:b2         alone: follow b two links          p:b2       a planner with the same question
    look(b)      d-k l-c j-f b=g                    ask(b)     g          (a worker's episode lies in between: w:b, look(b), …, say(g))
    look(g)      c-a a-g g=h                        ask(g)     h
    say(h)                                          say(h)

What was asked for has ``=``, what is no longer true has ``-``.

A question of kind ``sum``, ``a:b+c``, is answered by ``calc`` of two looked-up digits. Every line ends a turn or an answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Literal

from quatrain.environments.text import Limits, Start, Step
from quatrain.environments.toolworld.calls import Call, calculate, parse_call
from quatrain.environments.toolworld.questions import KEYS, KINDS, Question, next_call, wrong_call
from quatrain.errors import QuatrainError, nearest
from quatrain.seeds import mix, text_hash

SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 5
TOOLS = {"a": ("look", "calc", "say"), "p": ("ask", "calc", "say"), "w": ("look", "say")}  # by role: alone, planner, worker


@dataclass(frozen=True)
class Desk:
    """A state: whose it is (``a``, ``p``, ``w``), the question, and what tools have told so far, in order."""

    role: str
    question: Question
    found: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Toolworld:
    """A ``TextEnvironment``. Reward 1 for the right ``say``, which ends the episode; a call that is none is answered with an error.

    agents   ``alone``: who is asked looks up; ``team``: who is asked has workers for it; a worker sees one key and looks it up.
    kind     ``hops``: follow as many links as ``hops`` says; ``sum``: add two digits.
    noise    entries in a looked-up answer that are no longer true: a number, or a range ``4-10`` of which one is drawn per answer.
             An entry is 4 characters.
    place    where what was asked for stands among them: ``last`` is found by a beginner who was taught for seconds, ``anywhere`` is not.
    context  tokens that the policy can see at a time, ``Limits.context``.
    """

    agents: Literal["alone", "team"] = "alone"
    kind: Literal["hops", "sum"] = "hops"
    hops: int = 2
    noise: int | str = "4-10"
    place: Literal["last", "anywhere"] = "last"
    context: int = 96
    seed: int = 0
    stop: tuple[str, ...] = field(default=("\n",), init=False)
    slips = 0.2
    lessons = ("toolworld?noise=0-4", "toolworld?agents=team&noise=0-4", "toolworld", "toolworld?agents=team")  # what its beginner is shown

    def __post_init__(self) -> None:
        for name, known in (("agents", ("alone", "team")), ("kind", tuple(KINDS)), ("place", ("last", "anywhere"))):
            if getattr(self, name) not in known:
                raise QuatrainError(
                    f"toolworld has no such {name}", given=getattr(self, name), fix=nearest(str(getattr(self, name)), known)
                )
        low, high = self.range
        if not 0 <= low <= high <= 20 or not 1 <= self.hops <= 5:
            raise QuatrainError(
                "this toolworld cannot be", given=f"noise={self.noise} hops={self.hops}", expected="noise 0 … 20, hops 1 … 5"
            )

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most entries that are no longer true."""
        low, _, high = str(self.noise).partition("-")
        if not low.isdigit() or not (high or low).isdigit():
            raise QuatrainError("noise is a number of entries or a range", given=self.noise, expected="noise=8, noise=4-10")
        return int(low), int(high or low)

    @property
    def limits(self) -> Limits:
        return Limits(turns=self.hops + 3, turn_tokens=12, context=self.context)

    def start(self, split: str, index: int) -> Start:
        """A question by position; its split is decided by a hash of its content."""
        random = Random(mix(self.seed, SPLITS.index(split), index))
        while True:
            question = KINDS[self.kind](random, self.hops)
            if (text_hash(question.content) % HELDOUT_ONE_IN == 0) == (split == "heldout"):
                break
        role = "a" if self.agents == "alone" else "p"
        return Start(index, Desk(role, question), f"{role}:{question.text}\n", question.answer, {"kind": self.kind})

    def step(self, state: Desk, text: str) -> Step:
        """One call."""
        call = parse_call(text, TOOLS[state.role])
        if not isinstance(call, Call):
            return Step(state, f"error: {call}\n")
        if call.tool == "say":
            is_right = state.role != "w" and call.argument == state.question.answer
            return Step(state, f"{call.argument}\n", float(is_right), ended=True)
        if call.tool == "ask":
            worker = Start(
                0, Desk("w", replace(state.question, text=call.argument)), f"w:{call.argument}\n", state.question.value(call.argument)
            )
            return Step(replace(state, found=(*state.found, (call.argument, "?"))), call=worker)
        if call.tool == "calc":
            value = calculate(call.argument)
            return Step(replace(state, found=(*state.found, ("=", value))), f"{value}\n")
        value = state.question.value(call.argument)
        return Step(replace(state, found=(*state.found, (call.argument, value))), self._noisy(state.question, call.argument, value))

    def resume(self, state: Desk, told: str) -> Step:
        """A planner hears what its worker said, or that there was no answer."""
        value = told.strip()
        kept = (*state.found[:-1], (state.found[-1][0], value)) if value else state.found[:-1]
        return Step(replace(state, found=kept), told or "none\n")

    def expert(self, state: Desk) -> str:
        """The next call of somebody who reads well."""
        return next_call(state.role, state.question, dict(state.found)) + "\n"

    def slip(self, state: Desk, random: Random) -> str:
        """The typical mistake in place of the next call: another argument."""
        return wrong_call(state.role, state.question, dict(state.found), random) + "\n"

    def _noisy(self, question: Question, key: str, value: str) -> str:
        """The entry among others; the same one for the same key."""
        low, high = self.range
        random = Random(mix(question.noise_seed, text_hash(key)))
        others = random.choices([letter for letter in question.others if letter != key], k=random.randint(low, high))
        values = "0123456789" if question.is_digits else KEYS
        entries = [f"{other}-{random.choice(values)}" for other in others]
        entries.insert(len(entries) if self.place == "last" else random.randint(0, len(entries)), f"{key}={value}")
        return " ".join(entries) + "\n"
