"""One reward worker as its owner sees it: a process that can be asked, read and killed."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

_CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from quatrain.rewards.worker import main; main()"


class Process:
    """A worker process. ``job`` holds the indices of the completions that it was sent and has not answered, the one in work first.

    A fresh interpreter, not a fork: a fork would inherit locks of the parent's threads, and nothing of the user's script is run again.
    It leads its own session, so that Ctrl-C reaches the trainer only, and killing it kills what it started.
    """

    def __init__(self) -> None:
        self.popen: subprocess.Popen | None = None
        self.job: deque[int] = deque()
        self.ready = False
        self.since = 0.0  # when the completion in work was begun, or the process started; time.monotonic()
        self._unread = b""

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def start(self, setup: bytes) -> None:
        self.kill()
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        self.popen = subprocess.Popen(
            [sys.executable, "-c", _CODE, json.dumps([os.path.abspath(path) for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self.ready, self._unread, self.since = False, b"", time.monotonic()
        self._write(setup)

    def send(self, indices: Sequence[int], work: list[tuple[str, Any]]) -> None:
        self.job = deque(indices)
        self.since = time.monotonic()
        self._write(pickle.dumps(work))

    def read(self) -> list[dict[str, Any]] | None:
        """The messages that have arrived; None if the process has ended or sent what is no message."""
        data = os.read(self.popen.stdout.fileno(), 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        if not lines and not data:
            return None
        self.since = time.monotonic()
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None

    def kill(self) -> None:
        """End the process and what it started, at once. Nothing happens if there is none."""
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
            self.popen.wait()
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
            self.popen.stdout.close()
            self.popen, self.ready = None, False
            self.job.clear()

    def ending(self) -> str:
        """How the process ended, in words."""
        try:
            code = self.popen.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: its end of file is read next
            self.popen.stdin.write(data)
            self.popen.stdin.flush()
