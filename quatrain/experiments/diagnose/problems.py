"""Problems so small that every trajectory is written down: what a recipe's estimator is held against.

An outcome is a trajectory together with what nature chose on the way (an environment's answer, noise on the reward). Nature's
probability does not depend on the policy. Axes: M outcomes, T positions, K features, S rows of the policy's table, V actions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError, nearest


@dataclass(frozen=True)
class Problem:
    """All outcomes of all questions.

    outcomes   [M] rows: actions, the mask of what is the policy's, ``present``; columns state [M, T, K], node [M, T] (number of
               the history), terminated, truncated, turn; rewards where they come per action; rows reward and question.
    nature     [M] probability of what nature chose in it, given the policy's actions.
    table      [S, V] the policy's weights; reference and teacher: those of two other policies.
    shown      outcomes that demonstrate: one per question.
    pairs      (chosen, rejected) outcomes: preferences.
    """

    name: str
    about: str
    outcomes: Batch
    nature: Tensor
    table: Tensor
    reference: Tensor
    teacher: Tensor
    shown: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]

    @property
    def questions(self) -> int:
        return int(self.outcomes["question"].max()) + 1

    @property
    def longest(self) -> int:
        return self.outcomes.shape[1]


@dataclass
class Path:
    """One outcome, position by position: (state features, action, is it the policy's)."""

    question: int
    steps: list[tuple[Sequence[int], int, bool]]
    reward: float
    rewards: list[float] | None = None
    nature: float = 1.0
    truncated: bool = False


def make_problem(name: str, about: str, paths: Sequence[Path], shape: tuple[int, int], seed: int, spread: float = 1.0) -> Problem:
    """Tensors of written-down paths; the policy is a random table, its reference and teacher are near it."""
    length = max(len(path.steps) for path in paths)
    features = len(paths[0].steps[0][0])
    m = len(paths)
    actions, mask, present = (torch.zeros(m, length, dtype=kind) for kind in (torch.long, torch.bool, torch.bool))
    state, node = torch.zeros(m, length, features, dtype=torch.long), torch.zeros(m, length, dtype=torch.long)
    terminated, truncated = torch.zeros_like(mask), torch.zeros_like(mask)
    turn, rewards = torch.zeros_like(node), torch.zeros(m, length, dtype=torch.float64)
    nodes: dict[tuple, int] = {}
    for row, path in enumerate(paths):
        history: tuple = (path.question,)
        for t, (here, action, own) in enumerate(path.steps):
            actions[row, t], mask[row, t], present[row, t] = action, own, True
            state[row, t], node[row, t] = torch.tensor(list(here)), nodes.setdefault(history, len(nodes))
            turn[row, t] = sum(not step[2] for step in path.steps[:t])
            history = (*history, action)
        (truncated if path.truncated else terminated)[row, len(path.steps) - 1] = True
        rewards[row, : len(path.steps)] = torch.tensor(path.rewards) if path.rewards else torch.tensor(0.0)
    columns = {"present": present, "state": state, "node": node, "turn": turn, "terminated": terminated, "truncated": truncated}
    if any(path.rewards for path in paths):
        columns["rewards"] = rewards
    reward = torch.tensor([path.reward for path in paths], dtype=torch.float64)
    question = torch.tensor([path.question for path in paths])
    outcomes = Batch(mask=mask, actions=actions, columns=columns, rows={"reward": reward, "question": question})
    g = torch.Generator().manual_seed(seed)
    table, other, third = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(3))
    best = [[row for row in range(m) if paths[row].question == q] for q in range(int(question.max()) + 1)]
    shown = tuple(max(rows, key=lambda row: (paths[row].reward, -row)) for rows in best)
    worst = tuple(min(rows, key=lambda row: (paths[row].reward, row)) for rows in best)
    return Problem(
        name,
        about,
        outcomes,
        torch.tensor([path.nature for path in paths], dtype=torch.float64),
        spread * table,
        spread * table + 0.5 * other,
        spread * table + 0.5 * third,
        shown,
        tuple(zip(shown, worst, strict=True)),
    )


def bandit(solved: Sequence[float] = (0.92, 0.5, 0.08), arms: int = 4) -> Problem:
    """One action per question, one arm right. ``solved``: the policy's probability of it, question by question: easy to hard."""
    paths = [Path(q, [((q,), arm, True)], float(arm == 0)) for q in range(len(solved)) for arm in range(arms)]
    made = make_problem("bandit", "one action, one arm right; an easy, a middling and a hard question", paths, (len(solved), arms), 1)
    return _with_chances(made, solved)


def noisy() -> Problem:
    """Three arms with dense rewards and noise of ±0.5 on them, as likely up as down."""
    means = (1.0, 0.4, 0.0)
    paths = [Path(0, [((0,), arm, True)], mean + noise, nature=0.5) for arm, mean in enumerate(means) for noise in (-0.5, 0.5)]
    return make_problem("noisy", "three arms, dense rewards with noise of ±0.5", paths, (1, 3), 2)


def tree(longest: int = 7) -> Problem:
    """Answers of the letters a and b, ended by eos or cut: right if finished with an odd number of b. 2^(longest+1) − 1 sequences.

    The policy sees the letter before and whether the answer is still short: its parameters are shared by hundreds of histories.
    """
    eos, paths = 2, []
    for size in range(longest + 1):
        for letters in product((0, 1), repeat=size):
            cut = size == longest
            word = [*letters] if cut else [*letters, eos]
            steps = [((0 if t == 0 else 1 + word[t - 1], 3 + int(t >= 3)), action, True) for t, action in enumerate(word)]
            paths.append(Path(0, steps, float(not cut and sum(letters) % 2), truncated=cut))
    return make_problem(
        "tree", f"{len(paths)} sequences of a, b and eos with shared parameters; sparse reward", paths, (5, 3), 3, spread=0.9
    )


def loops(horizon: int = 5) -> Problem:
    """A ring of three states; every arrival in state 2 pays 1, states come back. At most ``horizon`` actions.

    left and right walk the ring, exit leaves it: what was earned is kept. The horizon ends the episode as well.
    """
    exit_, paths = 2, []

    def walk(place: int, steps: list, rewards: list[float]) -> None:
        for action in (0, 1, exit_):
            there = place if action == exit_ else (place + (1 if action else -1)) % 3
            now, got = [*steps, ((place,), action, True)], [*rewards, float(action != exit_ and there == 2)]
            if action == exit_ or len(now) == horizon:
                paths.append(Path(0, now, sum(got), got))
            else:
                walk(there, now, got)

    walk(0, [], [])
    about = f"a ring of three states with loops, at most {horizon} actions, {len(paths)} trajectories; a reward per action"
    return make_problem("loops", about, paths, (3, 3), 4, spread=0.7)


def turns() -> Problem:
    """Two turns with an environment's token between them: ask (0 or 1), read a hint, answer; or give up (2) for a small reward.

    The hint is present and is no action; it is true 6 times in 10, or 9 in 10 if the better question was asked. Right is the
    answer that nature hid.
    """
    paths = [Path(0, [((0,), 2, True)], 0.5)]
    for ask, hidden, hint, answer in product((0, 1), (0, 1), (0, 1), (0, 1, 2)):
        sharp = 0.9 if ask else 0.6
        chance = 0.5 * (sharp if hint == hidden else 1 - sharp)
        steps = [((0,), ask, True), ((1,), hint, False), ((2 + hint,), answer, True)]
        paths.append(Path(0, steps, float(answer == hidden), nature=chance))
    return make_problem(
        "turns", "ask, read the environment's token, answer: the token in between is no action", paths, (4, 3), 5, spread=0.6
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {"bandit": bandit, "noisy": noisy, "tree": tree, "loops": loops, "turns": turns}


def find_problem(name: str) -> Problem:
    """The problem of that name; an unknown one is refused with the nearest known."""
    if name not in PROBLEMS:
        raise QuatrainError(f"unknown problem {name!r}", fix=nearest(name, PROBLEMS))
    return PROBLEMS[name]()


def _with_chances(problem: Problem, solved: Sequence[float]) -> Problem:
    """The bandit whose policy takes arm 0 of question q with probability solved[q] and the others in uneven shares."""
    arms = problem.table.shape[1]
    share = torch.arange(arms - 1, 0, -1, dtype=torch.float64)
    rows = [torch.cat([torch.tensor([p], dtype=torch.float64), (1 - p) * share / share.sum()]) for p in solved]
    table = torch.stack(rows).log()
    return replace(
        problem, table=table, reference=table + problem.reference - problem.table, teacher=table + problem.teacher - problem.table
    )
