"""Tables by name: random, a chain, and a stand-in for real-time bidding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from quatrain.environments.tables.mdp import TableMDP
from quatrain.errors import QuatrainError, nearest


def garnet(
    states: int = 6, actions: int = 3, branching: int = 3, horizon: int | None = 10, discount: float = 1.0, levels: int = 4, seed: int = 0
) -> TableMDP:
    """A random problem (Bhatnagar et al. 2009): every pair leads to ``branching`` states, with shares cut at random points of [0, 1].

    Rewards are whole: r(s,a,s') ∈ {0, 1, …, levels − 1}, high ones rarer. The start is a random distribution.
    """
    g = torch.Generator().manual_seed(seed)
    branching = min(branching, states)
    order = torch.rand(states, actions, states, generator=g, dtype=torch.float64).argsort(-1)[..., :branching]
    cuts = torch.rand(states, actions, branching - 1, generator=g, dtype=torch.float64).sort(-1).values
    edge = torch.zeros(states, actions, 1, dtype=torch.float64)
    shares = torch.cat([edge, cuts, edge + 1], -1).diff(dim=-1)
    transition = torch.zeros(states, actions, states, dtype=torch.float64).scatter(-1, order, shares)
    reward = (levels * torch.rand(states, actions, states, generator=g, dtype=torch.float64) ** 2).floor()
    start = torch.rand(states, generator=g, dtype=torch.float64)
    return TableMDP(transition / transition.sum(-1, keepdim=True), reward, start / start.sum(), horizon, discount, 1.0, "garnet")


def chain(length: int = 5, horizon: int | None = 10, discount: float = 1.0, slip: float = 0.1) -> TableMDP:
    """A row of states, from the left end: forward (1) or back to the start (0); an action slips into the other with that chance.

    Being at the right end and stepping forward pays 10 and stays; returning pays 2 (Dearden et al. 1998, with whole rewards).
    """
    transition = torch.zeros(length, 2, length, dtype=torch.float64)
    reward = torch.zeros(length, 2, length, dtype=torch.float64)
    for state in range(length):
        for action in (0, 1):
            for meant, chance in ((action, 1 - slip), (1 - action, slip)):
                transition[state, action, min(state + 1, length - 1) if meant else 0] += chance
        reward[state, :, 0] = 2.0
    reward[length - 1, :, length - 1] = 10.0
    start = torch.zeros(length, dtype=torch.float64)
    start[0] = 1.0
    return TableMDP(transition, reward, start, horizon, discount, 1.0, "chain")


def rtb(budget: int = 8, horizon: int | None = 10, discount: float = 1.0, seed: int = 0) -> TableMDP:
    """Real-time bidding in miniature: how high to bid, with a budget that has to last.

    The state is (budget left, market quiet or busy). Bids 0, 1, 2 cost 1, 2, 3 of the budget when they win, win more often the higher
    they are and less often in a busy market; a win pays 1 in a quiet market and 3 in a busy one. The market stays as it is 7 times in
    10. The chances of winning are drawn by ``seed`` within a tenth of their means.
    """
    g = torch.Generator().manual_seed(seed)
    wins = torch.tensor([[0.3, 0.6, 0.9], [0.1, 0.4, 0.8]], dtype=torch.float64)
    wins = (wins + 0.2 * torch.rand(2, 3, generator=g, dtype=torch.float64) - 0.1).clamp(0.02, 0.98)
    states = 2 * (budget + 1)
    transition, reward = (torch.zeros(states, 3, states, dtype=torch.float64) for _ in range(2))
    for left in range(budget + 1):
        for market in (0, 1):
            for bid in range(3):
                state, cost = 2 * left + market, bid + 1
                chance = float(wins[market, bid]) if left >= cost else 0.0
                for then, stay in ((market, 0.7), (1 - market, 0.3)):
                    transition[state, bid, 2 * left + then] += (1 - chance) * stay
                    if chance:
                        transition[state, bid, 2 * (left - cost) + then] += chance * stay
                        reward[state, bid, 2 * (left - cost) + then] = 3.0 if market else 1.0
    start = torch.zeros(states, dtype=torch.float64)
    start[2 * budget :] = 0.5
    return TableMDP(transition, reward, start, horizon, discount, 1.0, "rtb")


TABLES: dict[str, Callable[..., TableMDP]] = {"garnet": garnet, "chain": chain, "rtb": rtb}


def find_table(name: str, **options: Any) -> TableMDP:
    """The table of that name. Raises QuatrainError for an unknown name or option, with the nearest known one."""
    if name not in TABLES:
        raise QuatrainError(f"unknown table {name!r}", fix=nearest(name, TABLES))
    known = inspect.signature(TABLES[name]).parameters
    for option in options:
        if option not in known:
            raise QuatrainError(f"the table {name} has no option {option!r}", fix=nearest(option, known))
    return TABLES[name](**options)
