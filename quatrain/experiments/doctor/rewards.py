"""The user's reward: the same twice, finite, in time, high on references, low on nothing, and not the same for all."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from quatrain.batch import Batch, group_index
from quatrain.errors import QuatrainError
from quatrain.experiments.doctor.finding import Finding, error, judged, ok, warning
from quatrain.experiments.doctor.patient import Patient
from quatrain.protocols import Item
from quatrain.rewards.base import shorten
from quatrain.tasks.text import SOLVED

ITEMS, TIMED, BUDGET = 8, 16, 10.0  # problems looked at; completions timed one by one; seconds for timing
LARGE = 10.0  # rewards beyond ±this are on another scale than "1 is solved"
NOTHING = ("", "I do not know.")
MOST = 0.9  # share of groups without signal, or of references that are not solved, that is worth a warning


def check_reward(patient: Patient) -> Iterator[Finding]:
    """One call after another; a reward that fails outright is not asked further."""
    items = list(patient.task.starts("train", 0, ITEMS))
    completions = [_text(patient, item, index) for index, item in enumerate(items)]
    counts = dict(getattr(patient.task.reward, "counts", {}))
    try:
        first = _score(patient, completions, items)
    except QuatrainError:
        raise
    except Exception as failure:  # the boundary to a user's code: whatever it raises is reported
        yield error(
            "reward answers",
            f"it raised {type(failure).__name__}: {shorten(str(failure))}",
            "one odd completion would stop the run",
            "return 0.0 for what it cannot read",
        )
        return
    bad = [value for value in first if not math.isfinite(value)]
    more = {kind: count - counts.get(kind, 0) for kind, count in getattr(patient.task.reward, "counts", {}).items()}
    failed = {kind: count for kind, count in more.items() if count}
    yield judged(
        not bad and not failed,
        "reward answers",
        f"{len(first)} completions: {len(bad)} not finite"
        + "".join(f", {count} {kind}{'s' * (count != 1)}" for kind, count in failed.items()),
        "a reward that is NaN spoils its whole group's advantages; a time-out or an error counts as 0 and teaches the wrong thing",
        "return a finite number for every text; see the log line that names the completion",
    )
    if not bad:
        yield from _repeats(patient, completions, items, first)
        yield from _in_time(patient, completions, items)
        yield from _extremes(patient, items, first)


def _score(patient: Patient, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
    return [float(value) for value in patient.task.reward.score(list(completions), list(items))]


def _text(patient: Patient, item: Item, index: int) -> str:
    """What a policy might write: its own completions, for the items that were sampled, else the reference or nothing."""
    own = patient.batch.notes.get("completion", ())
    group = max(1, len(own) // len(patient.starts))
    return own[index * group] if index * group < len(own) else item.solution or item.answer or ""


def _repeats(patient: Patient, completions: Sequence[str], items: Sequence[Item], first: Sequence[float]) -> Iterator[Finding]:
    again = [_score(patient, completions, items) for _ in range(2)]
    differ = sum(len(set(values)) > 1 for values in zip(first, *again, strict=True))
    yield judged(
        differ == 0,
        "reward is repeatable",
        f"{differ} of {len(first)} completions got another reward when judged again",
        "noise in the reward is learnt as if it were signal, and a resumed run is another one",
        "seed what is random in it by the item and the completion, or average",
    )


def _in_time(patient: Patient, completions: Sequence[str], items: Sequence[Item]) -> Iterator[Finding]:
    slowest, total, timed, deadline = 0.0, 0.0, 0, patient.settings.deadline
    for completion, item in zip(completions[:TIMED], items[:TIMED], strict=True):
        began = time.perf_counter()
        _score(patient, [completion], [item])
        took = time.perf_counter() - began
        slowest, total, timed = max(slowest, took), total + took, timed + 1
        if total > BUDGET:
            break
    rows = int(patient.knobs.get("prompts", 32)) * int(patient.source.group)
    step = total / timed * rows / patient.settings.reward_workers
    seen = f"slowest of {timed} calls {_duration(slowest)}, deadline {_duration(deadline)}; a batch of {rows} takes about {_duration(step)}"
    tell = partial(
        error if slowest >= deadline else warning,
        "reward is in time",
        why="a completion that takes longer counts as 0, whatever it is worth, and every step waits for the slowest",
        fix="make it faster, raise deadline, or give it more processes: reward_workers=4",
    )
    yield tell(seen) if slowest > 0.5 * deadline else ok("reward is in time", seen)


def _extremes(patient: Patient, items: Sequence[Item], own: Sequence[float]) -> Iterator[Finding]:
    """References are worth more than nothing; nothing is not solved; not all are worth the same; the scale is that of 1 = solved."""
    known = [item for item in items if item.answer is not None or item.solution is not None]
    shown = [
        max(_score(patient, texts, [item] * len(texts)))
        for item in known
        for texts in [[text for text in (item.solution, item.answer) if text is not None]]
    ]
    empty = [max(_score(patient, NOTHING, [item] * len(NOTHING))) for item in items]
    everything = [*own, *shown, *empty]
    if len(set(everything)) == 1:
        yield error(
            "reward tells apart",
            f"{len(everything)} completions (sampled, references, empty ones) all get {everything[0]:g}",
            "equal rewards have no advantage: nothing can be learnt",
            "look at what the function compares; score a right and a wrong answer by hand",
        )
        return
    yield ok("reward tells apart", f"{len(set(everything))} different rewards, from {min(everything):g} to {max(everything):g}")
    if known:
        solved = sum(value >= SOLVED for value in shown)
        yield judged(
            solved >= MOST * len(shown),
            "references are solved",
            f"{solved} of {len(shown)} reference answers get a reward of at least 1 (mean {sum(shown) / len(shown):.3g})",
            "a reward of at least 1 counts as solved in accuracy and pass@k; here the right answer does not get it",
            "check the format that the reward expects, and scale it so that a right answer is worth 1",
        )
    rewarded = sum(value >= SOLVED for value in empty)
    above = sum(
        nothing >= value for nothing, value in zip([v for v, i in zip(empty, items, strict=True) if i in known], shown, strict=True)
    )
    yield judged(
        rewarded <= 0.25 * len(items) and above <= 0.25 * len(items),
        "nothing is not rewarded",
        f"empty and idle completions: {rewarded} of {len(items)} count as solved, {above} get as much as the reference",
        "the shortest way to the reward is then to write nothing, and the policy finds it",
        "give 0 where there is no answer",
    )
    largest = max(map(abs, everything))
    if largest > LARGE:
        yield warning(
            "reward has the usual scale",
            f"rewards reach {largest:g}",
            "1 counts as solved, and gates and penalties assume that scale",
            "divide, so that a right answer is worth 1",
        )
    else:
        yield ok("reward has the usual scale", f"at most {largest:g} in size; 1 counts as solved")


def check_signal(patient: Patient) -> Iterator[Finding]:
    """Groups whose rewards are all equal teach nothing by comparison."""
    batch = rewarded(patient)
    reward = batch["reward"].double()
    if not patient.learns_from_rewards and patient.objectives:
        yield ok("groups have a signal", f"the recipe does not read rewards; the mean reward is {reward.mean():.3g}")
        return
    index, count = group_index(batch) if patient.source.group > 1 else (torch.zeros(len(batch), dtype=torch.long), 1)
    groups = [reward[index == group] for group in range(count)]
    same = [group for group in groups if float(group.max() - group.min()) < 1e-9]
    right, wrong = sum(float(group[0]) >= SOLVED for group in same), sum(float(group[0]) <= 0 for group in same)
    seen = f"{len(same)} of {len(groups)} groups of {len(groups[0])} have equal rewards"
    seen += f" ({right} all right, {wrong} all wrong); mean {reward.mean():.3g}"
    yield warning(_flat()[0], seen, *_flat()[1:]) if len(same) > MOST * len(groups) else ok("groups have a signal", seen)


def _flat() -> tuple[str, str, str]:
    return (
        "groups have a signal",
        "where all rewards of a group are equal every advantage is 0: the tokens are paid for and nothing is learnt",
        "easier or harder problems, a larger group, supervised fine-tuning first (sft, hpt), or dynamic sampling (dapo)",
    )


def rewarded(patient: Patient) -> Batch:
    """The run's own trajectories with the task's own rewards."""
    if not patient.is_text:
        return patient.batch
    batch = patient.batch
    items = [item for item in patient.starts for _ in range(len(batch) // len(patient.starts))]
    return batch.with_rows(reward=torch.tensor(_score(patient, batch.notes["completion"], items)))


def check_environment(patient: Patient) -> Iterator[Finding]:
    """An environment's rewards: finite, not all alike, and the same when an episode is played again."""
    batch, again = patient.batch, patient.sample(patient.sampling)
    rewards = batch["rewards"][batch.mask] if "rewards" in batch else batch["reward"]
    finite = bool(torch.isfinite(rewards).all())
    yield judged(
        finite,
        "reward answers",
        f"{len(rewards)} rewards from {rewards.min():.3g} to {rewards.max():.3g}",
        "a reward that is not a number ends in weights that are none",
        "look at the environment's reward function at the episode's end",
    )
    same = batch.shape == again.shape and torch.equal(batch.actions, again.actions) and torch.equal(batch["reward"], again["reward"])
    yield judged(
        same,
        "reward is repeatable",
        f"{len(batch)} episodes played again from the same starts and seeds: {'the same' if same else 'different'}",
        "a run cannot be resumed or compared: the environment draws from a state that reset(seed=…) does not set",
        "take all randomness from the generator that reset(seed=…) seeds",
    )
    lengths = batch.lengths.tolist()
    yield ok("episodes", f"{len(batch)} episodes of {min(lengths)} to {max(lengths)} actions, mean return {batch['reward'].mean():.3g}")


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 1 else f"{1000 * seconds:.2g} ms"
