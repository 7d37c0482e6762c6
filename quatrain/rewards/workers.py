"""Rewards in killable processes, with a deadline for every completion."""

from __future__ import annotations

import logging
import pickle
import select
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quatrain.errors import QuatrainError, nearest
from quatrain.rewards.base import Fault, Reward, judge, shorten
from quatrain.rewards.process import Process
from quatrain.rewards.spec import load_reward

if TYPE_CHECKING:
    from quatrain.protocols import Item

_log = logging.getLogger("quatrain.rewards")
_CHUNK = 64  # most completions in one message to a worker


class RewardWorkers:
    """Scores completions; whatever a reward does, the run goes on.

    A trusted reward (exact, format, …) is called here, directly. Every other one runs in ``workers`` processes, started at
    the first use and kept. What is printed there is discarded.

    reward      a name (see ``load_reward``), a Reward, or an importable function.
    workers     processes, at least 1.
    deadline_s  seconds per completion, above 0. A completion that takes longer, or during which the process dies, gets
                reward 0, a log line and a count; the process is replaced.
    on_error    what a call that raises or returns no finite number is worth: "zero" gives 0 with a log line and a count,
                "raise" raises QuatrainError.
    startup_s   seconds that loading the reward may take (a user's file may load a model).

    ``counts``  how often since the start: "timeout", "crash", "error".

    Raises QuatrainError for a bad argument, or a reward that cannot exist.
    """

    def __init__(
        self, reward: str | Reward, workers: int = 1, deadline_s: float = 5.0, on_error: str = "zero", startup_s: float = 120.0
    ) -> None:
        if workers < 1:
            raise QuatrainError("reward workers must be at least 1", given=workers, fix="workers=1")
        if not deadline_s > 0:
            raise QuatrainError("the deadline of a reward must be above 0 seconds", given=deadline_s, fix="deadline_s=5")
        if on_error not in ("zero", "raise"):
            raise QuatrainError("on_error is zero or raise", given=repr(on_error), fix=nearest(on_error, ("zero", "raise")))
        self.reward = load_reward(reward, prepare=False)
        self.deadline_s, self.startup_s, self.on_error = deadline_s, startup_s, on_error
        self.counts: Counter[str] = Counter()
        self._processes = [Process() for _ in range(0 if self.reward.trusted else workers)]
        self._setup = pickle.dumps({"reward": _portable(self.reward), "deadline_s": deadline_s}) if self._processes else b""
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._processes)

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def needs(self) -> tuple[str, ...]:
        return self.reward.needs

    def score(self, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
        """One finite reward per completion, in order.

        Raises QuatrainError: lengths differ; the reward cannot be loaded; with on_error="raise", a call that failed.
        """
        return self._score(completions, items, strict=False)

    def check(self, items: Sequence[Item]) -> list[float]:
        """Try the reward once before anything expensive: on the reference and on a text that answers nothing, of up to 4 items.

        Returns the rewards of the references (the solution, else the answer) of those items that have one.
        Raises QuatrainError whatever goes wrong, time-outs and crashes included, whatever ``on_error`` is.
        """
        sample = list(items[:4])
        references = [item.solution or item.answer for item in sample]
        known = [(text, item) for text, item in zip(references, sample, strict=True) if text is not None]
        trials = known + [("I do not know.", item) for item in sample]
        return self._score([text for text, _ in trials], [item for _, item in trials], strict=True)[: len(known)]

    def close(self) -> None:
        """End the processes. A later ``score`` starts them again."""
        _kill_all(self._processes)

    def __enter__(self) -> RewardWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one call --------------------------------------------------------------------------------------------------
    def _score(self, completions: Sequence[str], items: Sequence[Item], strict: bool) -> list[float]:
        if len(completions) != len(items):
            raise QuatrainError("one item per completion", given=f"{len(completions)} completions, {len(items)} items")
        with self._lock:
            if self.reward.trusted:
                return [self._here(completion, item, strict) for completion, item in zip(completions, items, strict=True)]
            try:
                return self._elsewhere(completions, items, strict)
            finally:  # after an error or Ctrl-C no process may keep old work
                for process in self._processes:
                    if process.job:
                        process.kill()

    def _here(self, completion: str, item: Item, strict: bool) -> float:
        try:
            return judge(self.reward, completion, item)
        except Fault as fault:
            return self._fault(fault, completion, item, strict)

    def _elsewhere(self, completions: Sequence[str], items: Sequence[Item], strict: bool) -> list[float]:
        rewards = [0.0] * len(completions)
        todo, left = deque(range(len(completions))), len(completions)
        size = max(1, min(_CHUNK, len(completions) // (2 * len(self._processes))))
        while left:
            self._feed(todo, size, completions, items)
            for process in self._wait():
                messages = process.read()
                for message in messages or ():
                    if message.get("ready"):
                        process.ready = True
                    elif "error" in message:
                        raise QuatrainError(**message["error"])
                    else:
                        index, left = process.job.popleft(), left - 1
                        rewards[index] = self._value(message, completions[index], items[index], strict)
                if messages is None:
                    left -= self._lost(process, "crash", process.ending(), todo, completions, items, strict)
            for process in self._processes:
                if not process.ready and process.popen is not None and time.monotonic() - process.since > self.startup_s:
                    raise QuatrainError(
                        f"reward {self.name} was not loaded within {self.startup_s:g} s",
                        fix="move slow work out of the import, or raise startup_s",
                    )
                if process.job and time.monotonic() - process.since > self.deadline_s:
                    left -= self._lost(process, "timeout", f"did not finish within {self.deadline_s:g} s", todo, completions, items, strict)
        return rewards

    def _feed(self, todo: deque[int], size: int, completions: Sequence[str], items: Sequence[Item]) -> None:
        """Give every idle process work, and start the ones that are missing while there is some."""
        for process in self._processes:
            if todo and not process.job and (process.popen is None or (process.ready and not process.alive)):
                process.start(self._setup)
            if todo and process.ready and not process.job:
                indices = [todo.popleft() for _ in range(min(size, len(todo)))]
                process.send(indices, [(completions[index], items[index]) for index in indices])

    def _wait(self) -> list[Process]:
        """The processes with something to read, at the latest when the next deadline has passed."""
        by_fd = {process.popen.stdout.fileno(): process for process in self._processes if process.popen is not None}
        now = time.monotonic()
        limits = [
            process.since + (self.deadline_s if process.ready else self.startup_s) - now
            for process in by_fd.values()
            if process.job or not process.ready
        ]
        poll = select.poll()  # select() itself refuses descriptors above 1023
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        return [by_fd[fd] for fd, _ in poll.poll(1000 * max(0.0, min(limits, default=0.0)) + 1)]

    def _value(self, message: dict[str, Any], completion: str, item: Item, strict: bool) -> float:
        if "value" in message:
            return float(message["value"])
        return self._fault(Fault(message["kind"], message["text"], message["where"]), completion, item, strict)

    def _fault(self, fault: Fault, completion: str, item: Item, strict: bool) -> float:
        error = fault.error(self.name, completion, item)
        if strict or self.on_error == "raise":
            raise error
        self._count("error", str(error).replace("\n", ";"))
        return 0.0

    def _lost(
        self, process: Process, kind: str, how: str, todo: deque[int], completions: Sequence[str], items: Sequence[Item], strict: bool
    ) -> int:
        """A process hung or died: the completion in work gets 0, the others go back. Returns how many are settled (0 or 1)."""
        if not process.job:  # while loading, or idle between two calls
            loading = not process.ready
            process.kill()
            if loading:
                raise QuatrainError(
                    f"reward {self.name} could not be loaded: its process {how}",
                    fix="import the reward's file in a Python of its own and look",
                )
            return 0
        index, *rest = process.job
        process.kill()
        what = f"reward {self.name} {how if kind == 'timeout' else f'took its process down: it {how}'}"
        given = f"completion {shorten(completions[index])!r} of item {items[index].id}"
        if strict:
            fix = "make it faster, or raise deadline_s" if kind == "timeout" else "a reward returns a number; it does not exit"
            raise QuatrainError(what, given=given, expected="an answer for every completion", fix=fix)
        todo.extendleft(reversed(rest))
        self._count(kind, f"{what}; {given}")
        return 1

    def _count(self, kind: str, message: str) -> None:
        """Count, and log the first nine, then every tenth, hundredth, …"""
        self.counts[kind] += 1
        count = self.counts[kind]
        if count % 10 ** max(0, len(str(count)) - 1) == 0:
            _log.warning("%s; reward 0 (%s number %d)", message, kind, count)


def _portable(reward: Reward) -> Reward:
    """The reward, if it can be sent to another process."""
    try:
        pickle.dumps(reward)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise QuatrainError(
            f"reward {reward.name} cannot be sent to a process of its own: {error}",
            fix="use functions and classes at the top level of a module",
        ) from None
    return reward


def _kill_all(processes: list[Process]) -> None:
    for process in processes:
        process.kill()
