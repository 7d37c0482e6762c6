"""Randomness is addressed, never carried along: a seed is a function of what it is for."""

from __future__ import annotations

import hashlib

_WORD = (1 << 64) - 1


def derive(seed: int, *names: object) -> int:
    """A seed in [0, 2^62) that depends on all arguments.

    >>> derive(0, "sample", 3) == derive(0, "sample", 3) != derive(0, "sample", 4)
    True
    """
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2


def mix(*parts: int) -> int:
    """A 63-bit hash of integers, in [0, 2⁶³): the SplitMix64 finaliser folded over them (Steele, Lea, Flood 2014).

    The order matters, and neighbouring arguments give unrelated results.

    >>> mix(1, 2) == mix(1, 2), mix(1, 2) == mix(2, 1)
    (True, False)
    """
    state = len(parts)
    for part in parts:
        state = (state ^ (part & _WORD)) + 0x9E3779B97F4A7C15 & _WORD
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
        state ^= state >> 31
    return state >> 1


def text_hash(text: str) -> int:
    """A 63-bit hash of a text, the same in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
