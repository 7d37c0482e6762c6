"""The questions of toolworld over a table of twelve keys: how one is drawn, what to call next, and what a pupil calls by mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random

KEYS = "abcdefghijkl"  # few enough that a beginner learns in seconds to find one of them


@dataclass(frozen=True)
class Question:
    """text       as the policy sees it: ``b2`` (two links from b), ``b+c``; a worker's: a key.
    content    what decides the split.
    answer     what ends the episode well.
    table      the values of the keys, in order.
    asked      the keys that a right way looks up; no other answer names them as keys.
    noise_seed  of what stands around an entry.
    """

    text: str
    content: str
    answer: str
    table: str
    asked: str
    noise_seed: int

    def value(self, key: str) -> str:
        return self.table[KEYS.index(key)]

    @property
    def is_digits(self) -> bool:
        return self.table[0].isdigit()

    @property
    def others(self) -> str:
        """Keys that may stand around an entry."""
        return "".join(letter for letter in KEYS if letter not in self.asked)


def hops(random: Random, count: int) -> Question:
    """Follow ``count`` links; the keys on the way are different."""
    chain = "".join(random.sample(KEYS, count + 1))
    links = dict(pairwise(chain))
    table = "".join(links.get(key) or random.choice(KEYS) for key in KEYS)
    return Question(f"{chain[0]}{count}", chain, chain[-1], table, chain[:-1], random.getrandbits(62))


def total(random: Random, count: int) -> Question:
    """Look two digits up and add them."""
    table = "".join(random.choice("0123456789") for _ in KEYS)
    first, second = random.sample(KEYS, 2)
    a, b = (table[KEYS.index(key)] for key in (first, second))
    return Question(f"{first}+{second}", f"{first}{a}+{second}{b}", str(int(a) + int(b)), table, first + second, random.getrandbits(62))


KINDS = {"hops": hops, "sum": total}


def next_call(role: str, question: Question, found: Mapping[str, str]) -> str:
    """What somebody calls who trusts what was found so far."""
    look = "ask" if role == "p" else "look"
    if role == "w":
        return f"say({found[question.text]})" if question.text in found else f"look({question.text})"
    if "+" in question.text:
        keys = question.text.split("+")
        for key in keys:
            if key not in found:
                return f"{look}({key})"
        return f"say({found['=']})" if "=" in found else f"calc({found[keys[0]]}+{found[keys[1]]})"
    key = question.text[0]
    for _ in range(int(question.text[1:])):
        if key not in found:
            return f"{look}({key})"
        key = found[key]
    return f"say({key})"


def wrong_call(role: str, question: Question, found: Mapping[str, str], random: Random) -> str:
    """The right call with another argument of the same type."""
    tool, _, argument = next_call(role, question, found).partition("(")
    argument = argument[:-1]
    other = random.choice("0123456789" if argument[0].isdigit() else KEYS)
    return f"{tool}({other}+{other})" if "+" in argument else f"{tool}({other})"
