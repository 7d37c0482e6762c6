"""The cache folder of embedded models: each is built from its lesson once, and appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError

Report = Callable[[float, float], None]  # (fraction done, loss in nats per token)
Build = Callable[[Any, Path, Report], None]  # (lesson, folder, report): makes the lesson's model and writes its directory
FORMAT = 1  # of what is cached; part of its key
YOUNGER = ("told", "mingled", "prior", "habit")  # fields of a lesson that the key has only where they are on


def cache_folder() -> Path:
    """Where embedded models are kept: QUATRAIN_CACHE, else ~/.cache/quatrain."""
    return Path(os.environ.get("QUATRAIN_CACHE") or Path.home() / ".cache" / "quatrain").expanduser()


def cached(lesson: Any, build: Build, show: bool = False, name: str = "the embedded model") -> Path:
    """The directory of the lesson's model, built at first use. It appears whole or not at all: two processes may build at once.

    build  ``(lesson, folder, report)``: makes the model and writes its directory.

    Raises QuatrainError if the cache folder cannot be written.
    """
    what = {name: value for name, value in dataclasses.asdict(lesson).items() if name not in YOUNGER or value}
    key = hashlib.sha256(json.dumps([FORMAT, what], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"tiny-{key}"
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    except OSError as error:
        raise QuatrainError(
            "the folder of embedded models cannot be written", given=f"{folder.parent}: {error}", fix="set QUATRAIN_CACHE"
        ) from error
    try:
        with one_thread(), _progress(show, f"building {name}, once") as report:
            build(lesson, draft, report)
        draft.chmod(0o755)
        try:
            os.replace(draft, folder)
        except OSError:
            if not (folder / "config.json").exists():  # else another process was first, with the same result
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices of this size are too small to share out: a second thread mostly waits, and on a busy machine it waits long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _progress(show: bool, title: str) -> Iterator[Callable[[float, float], None]]:
    """A function of (fraction done, loss) that draws a progress bar on standard error, or nothing."""
    if not show:
        yield lambda done, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task(title, total=1.0, loss=float("nan"))

        def report(done: float, loss: float) -> None:
            bar.update(work, completed=done, loss=loss)

        yield report
