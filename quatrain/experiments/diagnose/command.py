"""What the command line calls: names in, text out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError
from quatrain.experiments.diagnose.problems import PROBLEMS
from quatrain.experiments.diagnose.show import parts, write_page
from quatrain.experiments.diagnose.study import Diagnosis, diagnose
from quatrain.reports.table import results_table


def run_diagnosis(
    names: Sequence[str], beside: str, problems: Sequence[str] | None, as_json: bool, page: Path | None, seed: int
) -> tuple[str, bool]:
    """(what to print, whether no fault was found)."""
    import torch

    from quatrain.training.registry import make

    torch.set_num_threads(1)  # tensors are tiny: threads only get in each other's way
    recipes = dict(arm(name) for name in names)
    neighbour = None if beside == "none" else (beside, make(beside))
    chosen = tuple(dict.fromkeys(problems or PROBLEMS))
    swept_on = "tree" if "tree" in chosen else chosen[0]
    with _progress(not as_json) as progress:
        found = diagnose(recipes, chosen, neighbour, swept_on, seed, progress)
    if page:
        write_page(found, page)
    clean = not any(found.found.values())
    if as_json:
        return json.dumps(found.data(), indent=1), clean
    return text(found) + (f"\npage  {page}" if page else ""), clean


def arm(name: str) -> tuple[str, Any]:
    """``grpo:group=16,kl=0`` as (name, recipe)."""
    from quatrain.training.registry import make
    from quatrain.training.settings import split_pairs

    base, _, options = name.partition(":")
    if ":" in name and not options:
        raise QuatrainError("a recipe's options are missing", given=name, fix=f"{base}:group=16,kl=0")
    return name, make(base, **split_pairs(options.split(",") if options else []))


def text(diagnosis: Diagnosis) -> str:
    """Every table, as wide as the terminal (at least 100 columns)."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=max(100, shutil.get_terminal_size((140, 40)).columns), highlight=False)
    for part in parts(diagnosis):
        console.print(f"[bold]{part.title}[/bold]" + (f"   [dim]{part.note}[/dim]" if part.note else ""))
        if part.rows:
            console.print(results_table(part.rows, best={}))
        else:
            console.print()
    exact = "; ".join(f"{problem.name}: {problem.about}" for problem in diagnosis.problems)
    console.print(f"[dim]{exact}. {diagnosis.seconds:.1f} s[/dim]")
    return console.file.getvalue().rstrip()


@contextmanager
def _progress(shown: bool) -> Iterator[Any]:
    from rich.console import Console

    if not shown:
        yield lambda text: None
        return
    with Console(stderr=True).status("diagnose") as status:
        yield lambda text: status.update(text)
