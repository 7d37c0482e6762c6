"""Tasks by name: what stands after ``task=``."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from quatrain.environments.loading import is_turned
from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Item, Task
from quatrain.rewards.base import Reward
from quatrain.rewards.workers import RewardWorkers
from quatrain.tasks.files import SUFFIXES, Records, read_folder, read_hub, read_records
from quatrain.tasks.kinds import KINDS, USERS, Asked, Kind
from quatrain.tasks.records import Columns, find_columns, split_heldout, to_items

if TYPE_CHECKING:
    from quatrain.tasks.text import TextTask

_log = logging.getLogger("quatrain.tasks")
RECORDS = "a file (.jsonl, .json, .parquet), a folder, or a data set of the Hugging Face hub"


@dataclass(frozen=True)
class Unjudged:
    """In place of a reward where none was named: enough for demonstrations and pairs; asking for a score says what to do."""

    task: str
    needs: tuple[str, ...] = ()
    judges: ClassVar[bool] = False

    def score(self, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
        raise QuatrainError(
            f"task {self.task} has no reward",
            expected="a way to judge completions, for training by reward and for evaluation",
            fix="reward=math, reward=exact or reward=rewards.py:function",
        )


def load_task(
    spec: str,
    reward: str | Reward | None = None,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    solution: str | None = None,
    messages: str | None = None,
    chosen: str | None = None,
    rejected: str | None = None,
    heldout: float | str = 0.1,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 1,
    deadline: float = 5.0,
    on_error: str = "zero",
    check: bool = True,
) -> Task:
    """The task that a text names.

        letters   letters:chain?levels=2-4           the embedded laboratory
        shapes   shapes:generation?objects=3-5       images of 16 tokens, read and drawn
        plane:route   plane:push   plane:reach       the laboratory of small continuous worlds
        gym:CartPole-v1                              an environment
        gym:Pendulum-v1?data=0.8*random+0.2*good     with a data set, of policies or of a folder in Minari's layout
        grid   grid?size=4   toolworld?agents=team   an embedded environment of texts, in turns
        mine.py:Class?option=value                   a user's own: see ``environments.text.TextEnvironment``
        tables:rtb?horizon=20                        a tabular problem: everything about a policy is known exactly
        tool-choice   tool-choice?samples=50         which tool for which request: twelve hidden heuristics
        reasoning_gym:countdown?min_numbers=3        reasoning-gym, with its own scorer
        data.jsonl   data.json   data.parquet        a file of records
        folder/                                      a saved Hugging Face data set, or train.* and test.* files
        openai/gsm8k?config=main&split=train         a data set of the Hugging Face hub

    reward   see ``rewards.spec.load_reward``. None: the task's own; records have none (``Unjudged``).
    prompt, answer, solution, messages, chosen, rejected   for records: the column that holds it; well-known names are found.
    heldout  for records: a share (0: none), or a file of held-out records. A source's own held-out split goes before a share.
    limit    for records and data sets of transitions: at most this many to train on, from the beginning.
    workers, deadline (seconds per completion), on_error   see ``RewardWorkers``.
    check    try the reward on the first items now.

    Raises QuatrainError with what was given, expected and to do.
    """
    asked = Asked(spec, seed, limit, partial(RewardWorkers, workers=workers, deadline_s=deadline, on_error=on_error))
    judge = None if reward is None else asked.judged(reward)
    if kind := _kind(spec):
        if judge is not None and not kind.rewards:
            raise QuatrainError(f"{kind.form} gives its own rewards", given=f"task={spec} reward={reward}", fix="leave reward out")
        task = kind.load(asked)
        if not kind.rewards:
            return task
        task.reward = judge or task.reward
    else:
        columns = {"prompt": prompt, "answer": answer, "solution": solution, "messages": messages, "chosen": chosen, "rejected": rejected}
        task = _from_records(spec, judge, columns, heldout, seed, limit)
    if check and isinstance(task.reward, RewardWorkers):
        references = task.reward.check(task.starts("train", 0, 4))
        if references and max(references) <= 0:
            _log.warning("reward %s gives nothing to the reference solutions of %s: is it the right one?", task.reward.name, spec)
    return task


def _kind(spec: str) -> Kind | None:
    """The registered kind that a text names; None for records. Raises QuatrainError, with the nearest name, for what is neither."""
    head, word = spec.partition("?")[0], re.split("[:?]", spec)[0]
    if is_turned(spec):
        return USERS
    if _is_path(head):
        return None
    if word not in KINDS and (":" in head or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", head) or _almost(head)):
        forms = ", ".join(kind.form for kind in (*KINDS.values(), USERS))
        raise QuatrainError(f"there is no task {spec!r}", expected=f"{forms}, {RECORDS}", fix=nearest(word, KINDS))
    return KINDS.get(word)


def _is_path(head: str) -> bool:
    return head.startswith((".", "/", "~")) or Path(head).suffix in SUFFIXES or Path(head).expanduser().exists()


def _almost(head: str) -> bool:
    """A misspelt name of ours rather than one of the hub's."""
    return "/" not in head and nearest(head, KINDS).startswith("did you mean")


def _from_records(
    spec: str, judge: RewardWorkers | None, given: Mapping[str, str | None], heldout: float | str, seed: int, limit: int | None
) -> TextTask:
    from quatrain.tasks.text import TextTask

    if limit is not None and limit < 1:
        raise QuatrainError("limit is at least 1", given=limit)
    records = _read(spec, limit)
    columns = find_columns(records.train[0], given, spec)
    train = to_items(records.train, columns, spec)
    if isinstance(heldout, str):
        held = _heldout_items(read_records(heldout), given, heldout, len(train))
    elif records.heldout is not None:
        held = _heldout_items(records.heldout, given, f"the held-out split of {spec}", len(train))
    else:
        train, held = split_heldout(train, heldout, spec)
    _check_needs(judge, [*train, *held], columns, records.train[0], spec)
    return TextTask(spec, train, held or None, judge or Unjudged(spec), seed=seed)


def _heldout_items(records: Sequence[Mapping[str, Any]], given: Mapping[str, str | None], where: str, first: int) -> list[Item]:
    return to_items(records, find_columns(records[0], given, where), where, first)


def _read(spec: str, limit: int | None) -> Records:
    if _is_path(spec):
        path = Path(spec).expanduser()
        return read_folder(path, limit) if path.is_dir() else Records(read_records(path, limit))
    name, _, query = spec.partition("?")
    options = dict(pair.partition("=")[::2] for pair in query.split("&") if pair)
    for key in options:
        if key not in ("config", "split"):
            raise QuatrainError(f"a data set of the hub has no option {key!r}", given=spec, fix=nearest(key, ("config", "split")))
    return read_hub(name, options.get("config"), options.get("split"), limit)


def _check_needs(judge: RewardWorkers | None, items: Sequence[Item], columns: Columns, record: Mapping[str, Any], spec: str) -> None:
    if judge is None or "answer" not in judge.needs:
        return
    lacking = [item.id for item in items if item.answer is None]
    if lacking:
        names = ", ".join(map(str, record))
        raise QuatrainError(
            f"reward {judge.name} compares with an answer, and {spec} has none"
            + (f" in {len(lacking)} of {len(items)} items" if len(lacking) < len(items) else ""),
            given=f"columns {names}",
            expected="a column answer, or a solution that ends in \\boxed{…} or #### …",
            fix="name it: answer=COLUMN" if columns.answer is None else "complete the data",
        )
