"""The *grid* laboratory: fetch the key, open the door; one letter per move, a reward at the end alone.

    d3,-2 k1,0:     from the agent the door is 3 to the right and 2 up, the key 1 to the right; after it is taken: d3,-2 k:

A move is one of ``lrud``; ``x`` before the colon says that the last one was no move or was stopped by a wall or by the border.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from quatrain.environments.text import Limits, Start, Step
from quatrain.errors import QuatrainError
from quatrain.seeds import mix, text_hash

Place = tuple[int, int]
MOVES: dict[str, Place] = {"l": (-1, 0), "r": (1, 0), "u": (0, -1), "d": (0, 1)}
SPLITS = ("train", "heldout")
HELDOUT_ONE_IN = 5


@dataclass(frozen=True)
class Room:
    """A state: size × size places, walls; where the agent is, the door and the key (None: taken)."""

    size: int
    walls: frozenset[Place]
    agent: Place
    door: Place
    key: Place | None

    def passable(self, place: Place) -> bool:
        """Inside, no wall, and not the door without the key."""
        inside = 0 <= place[0] < self.size and 0 <= place[1] < self.size
        return inside and place not in self.walls and (place != self.door or self.key is None)


@dataclass(frozen=True)
class Grid:
    """A ``TextEnvironment``: rooms of that size, drawn anew for every start; those without a solution are drawn again.

    walls  how many places are walls.
    slack  turns allowed: this many times the shortest way across and back, 2·size each.
    hide   the key and the door are shown only within this distance (0: always): the policy must look, and remember.

    Which split a room belongs to is decided by a hash of its content.
    """

    size: int = 4
    walls: int = 0
    slack: int = 1
    hide: int = 0
    seed: int = 0
    stop: tuple[str, ...] = field(default=(), init=False)
    slips = 0.6
    lessons = ("grid", "grid", "grid?size=3", "grid?walls=2")  # what the embedded model is shown

    def __post_init__(self) -> None:
        if not 2 <= self.size <= 9 or not 0 <= self.walls <= self.size**2 - 3 or self.slack < 1 or self.hide < 0:
            raise QuatrainError(
                "this grid cannot be",
                given=f"size={self.size} walls={self.walls} slack={self.slack} hide={self.hide}",
                expected="2 ≤ size ≤ 9, 0 ≤ walls ≤ size² − 3, slack ≥ 1, hide ≥ 0",
            )

    @property
    def limits(self) -> Limits:
        turns = self.slack * 4 * self.size
        return Limits(turns=turns, turn_tokens=1, context=14 * (turns + 1))

    def start(self, split: str, index: int) -> Start:
        """A room by position; every other number of tries is the same room in every process."""
        random = Random(mix(self.seed, SPLITS.index(split), index))
        while True:
            places = random.sample([(x, y) for x in range(self.size) for y in range(self.size)], 3 + self.walls)
            room = Room(self.size, frozenset(places[3:]), *places[:3])
            is_heldout = text_hash(repr((places[:3], sorted(places[3:])))) % HELDOUT_ONE_IN == 0
            if is_heldout == (split == "heldout") and (way := solve(room)):
                return Start(index, room, self.observe(room), answer=way, data={"level": 1 + (len(way) - 1) // self.size})

    def step(self, state: Room, text: str) -> Step:
        """One move: the first letter of the turn. Reward 1 at the door with the key."""
        after = moved(state, text.strip()[:1])
        if after is None:
            return Step(state, "x" + self.observe(state))
        if after.agent == after.door:
            return Step(after, reward=1.0, ended=True)
        return Step(after, self.observe(after))

    def expert(self, state: Room) -> str:
        """The next move of a shortest way."""
        return solve(state)[:1]

    def slip(self, state: Room, random: Random) -> str:
        """Without the key: to the door, which is closed; with it: a move at random."""
        x, y = gap(state.agent, state.door)
        wishes = [move for move, (dx, dy) in MOVES.items() if state.key is not None and (dx * x > 0 or dy * y > 0)]
        return random.choice(wishes or list(MOVES))

    def observe(self, room: Room) -> str:
        """Where door and key are from the agent."""
        key = "" if room.key is None else self._seen(room.agent, room.key)
        return f"d{self._seen(room.agent, room.door)} k{key}:"

    def _seen(self, agent: Place, other: Place) -> str:
        x, y = gap(agent, other)
        return "?" if self.hide and max(abs(x), abs(y)) > self.hide else f"{x},{y}"


def gap(agent: Place, other: Place) -> Place:
    """How far the other is to the right of the agent, and below."""
    return other[0] - agent[0], other[1] - agent[1]


def moved(room: Room, move: str) -> Room | None:
    """The room after a move, the key taken where it lies; None where it is no move or is stopped."""
    if move not in MOVES:
        return None
    place = (room.agent[0] + MOVES[move][0], room.agent[1] + MOVES[move][1])
    if not room.passable(place):
        return None
    return Room(room.size, room.walls, place, room.door, None if place == room.key else room.key)


@lru_cache(2**16)
def solve(room: Room) -> str:
    """The moves of a shortest way to the key and then to the door, by breadth-first search; empty where there is none.

    >>> solve(Room(3, frozenset(), (0, 0), (2, 0), (0, 1)))
    'drru'
    """
    first = (room.agent, room.key)
    came: dict[tuple[Place, Place | None], str] = {first: ""}
    queue = deque([room])
    while queue:
        here = queue.popleft()
        for move in MOVES:
            after = moved(here, move)
            if after is None or (after.agent, after.key) in came:
                continue
            came[after.agent, after.key] = came[here.agent, here.key] + move
            if after.agent == after.door:
                return came[after.agent, after.key]
            queue.append(after)
    return ""
