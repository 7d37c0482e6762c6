"""The other side of ``RewardWorkers``: a process that loads a reward and judges the completions it is sent.

Messages in (standard input): one pickled dict {"reward", "deadline_s"}, then pickled lists of (completion, item).
Messages out (standard output): JSON lines. {"ready": true}; then per completion {"value": x} or {"kind", "text", "where"} or
{"error": …}. JSON, because the process runs code that the other side need not trust to be well-behaved.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from typing import Any, BinaryIO

from quatrain.errors import QuatrainError
from quatrain.rewards.base import Fault, judge


def main() -> None:
    """Run until the input ends or the parent is gone."""
    inbox, outbox = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a reward prints goes nowhere: it can neither fill a pipe nor be taken for a result
        os.dup2(null, stream)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        setup = pickle.load(inbox)
        reward = setup["reward"]
        if hasattr(reward, "prepare"):
            reward.prepare()
    except QuatrainError as error:
        _send(outbox, _refusal(error))
        return
    except Exception as error:  # a class that cannot be imported here: reported on the other side
        _send(outbox, _refusal(QuatrainError(f"the reward cannot be loaded in a worker: {type(error).__name__}: {error}")))
        return
    _send(outbox, {"ready": True})
    while True:
        try:
            chunk = pickle.load(inbox)
        except EOFError:
            return
        for completion, item in chunk:
            # A long multiplication holds the interpreter, and then neither a signal handler nor the watching thread runs. If the
            # parent dies meanwhile, the kernel ends this process by its own clock. (SIGALRM is left to rewards that use it.)
            signal.setitimer(signal.ITIMER_VIRTUAL, 2 * setup["deadline_s"] + 1)
            try:
                result: dict[str, Any] = {"value": judge(reward, completion, item)}
            except Fault as fault:
                result = {"kind": fault.kind, "text": fault.text, "where": fault.where}
            except QuatrainError as error:
                result = _refusal(error)
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            _send(outbox, result)


def _refusal(error: QuatrainError) -> dict[str, Any]:
    parts = {
        name: None if value is None else str(value)
        for name, value in (("given", error.given), ("expected", error.expected), ("fix", error.fix))
    }
    return {"error": {"what": error.what, **parts}}


def _send(outbox: BinaryIO, message: dict[str, Any]) -> None:
    outbox.write(json.dumps(message).encode() + b"\n")
    outbox.flush()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(0)
