"""What the benchmarks share: the peer's interpreter, interleaved timing, peak memory, a table."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

HERE = Path(__file__).resolve().parent
TABLES = "<!-- recorded tables, put here by the scripts -->\n"
ORDER = ("step", "reward", "sampler", "scorer", "scaling", "threads", "phases", "compile", "")
PEERS = "torch==2.13.0 trl==1.16.0 transformers==5.23.0"


def arguments(description: str, **extra: tuple[object, str]) -> argparse.Namespace:
    """The options of a benchmark. With a peer's interpreter given, the script starts again in it: both sides run in one process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer-python", default=os.environ.get("QUATRAIN_PEER"), help=f"interpreter that has {PEERS} (QUATRAIN_PEER)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # the side that a child process measures
    for name, (default, text) in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} (default {default})")
    found = parser.parse_args()
    if found.peer_python and not os.environ.get("QUATRAIN_IN_PEER"):
        search = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "QUATRAIN_IN_PEER": "1",
            "PYTHONPATH": search,
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        raise SystemExit(subprocess.run([found.peer_python, *sys.argv], env=environment).returncode)
    import torch

    torch.set_num_threads(found.threads)
    return found


def has_peer() -> bool:
    from importlib.util import find_spec

    return find_spec("trl") is not None


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each side, in turn, ``repeats`` times, after one run each that is not counted (``warm``)."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + warm):
        for name, run in sides.items():
            began = perf_counter()
            run()
            if repeat >= warm:
                times[name].append(perf_counter() - began)
    return times


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """The median, and the range of all measurements."""
    return f"{median(values):.3g} s ({min(values):.3g}–{max(values):.3g})"


def peak_above(run: Callable[[], object]) -> float:
    """MB of resident memory at the peak of ``run`` above those before it (Linux: the kernel's own high-water mark, reset first)."""

    def status(field: str) -> float:
        return next(float(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def memory_of(side: str) -> float:
    """MB above the finished set-up at the peak of the first run of a side, in a process of its own (this script with --memory).

    Infinity for a side that the system killed: it needs more memory than the machine has left.
    """
    done = subprocess.run([sys.executable, *sys.argv, "--memory", side], capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        return math.inf
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {side!r} failed:\n{done.stderr}")
    return float(done.stdout.strip().splitlines()[-1])


def machine(threads: int) -> str:
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores, {threads} thread(s), fp32; {of('torch')}, {of('transformers')}, {of('trl')}"


def report(name: str, threads: int, columns: Sequence[str], rows: Sequence[Sequence[object]], notes: Sequence[str] = ()) -> None:
    """Print a Markdown table, keep it in benchmarks/results, and put it into benchmarks/README.md."""
    lines = [f"**{name}** – {machine(threads)}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row) + " |" for row in rows]
    lines += ["", *notes]
    print("\n".join(lines))
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name.replace(' ', '-')}.md").write_text("\n".join(lines).strip() + "\n")
    whole = {"machine": machine(threads), "columns": list(columns), "rows": [list(row) for row in rows], "notes": list(notes)}
    (folder / f"{name.replace(' ', '-')}.json").write_text(json.dumps(whole, indent=1))
    if (page := HERE / "README.md").exists():
        page.write_text(page.read_text().partition(TABLES)[0] + TABLES + tables(folder))


def tables(folder: Path) -> str:
    """All recorded tables, in the order of the scripts' names."""
    found = sorted(folder.glob("*.md"), key=lambda path: ([path.stem.startswith(kind) for kind in ORDER].index(True), path.stem))
    return "".join(f"\n{path.read_text()}" for path in found)
