"""The command line. Every command is a thin call of the library; heavy things are imported when they are used."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from quatrain.errors import QuatrainError

app = typer.Typer(
    name="quatrain",
    help="Policy learning in four parts: one small engine, and a recipe for every published system.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE…", help="options, knobs and settings, or a YAML file of them")]
RecipeName = Annotated[str, typer.Argument(metavar="NAME", help="a recipe, as in `quatrain systems`")]


@app.command()
def train(name: RecipeName, keys: Keys = None) -> None:
    """Train a policy: quatrain train grpo model=DIRECTORY task=gsm8k.jsonl reward=math lr=1e-6 steps=200."""
    from quatrain.reports.tables import read_tables
    from quatrain.training.run import train as run
    from quatrain.training.settings import split_pairs

    result = run(name, **split_pairs(keys or []))
    shown = ("accuracy", "success", "return", "reward", "length", "entropy", "tokens")
    best = {key: value for key, value in result.metrics.items() if key in shown or key.startswith("pass@")}
    _show([{"recipe": name, **best, "seconds": result.seconds}])
    for title, rows in read_tables(result.folder).items():
        _show(rows, title)
    if result.interrupted:
        typer.echo(f"interrupted after step {result.state.step}; continue with: quatrain train {name} {' '.join(keys or [])} resume=true")
    typer.echo(f"model   {result.folder / 'model'}")
    if result.report:
        typer.echo(f"report  {result.report}")


@app.command("eval")
def evaluate(model: Annotated[str, typer.Argument(help="a model directory, a run's folder, or tiny")], keys: Keys = None) -> None:
    """Held-out performance of a model: quatrain eval runs/grpo-letters-seed0 task=letters."""
    from quatrain.training.evaluate import evaluate_model
    from quatrain.training.settings import split_pairs

    found = evaluate_model(model, **split_pairs(keys or []))
    _show([{"metric": name, "value": value} for name, value in found.items()])


@app.command()
def compare(
    arms: Annotated[list[str], typer.Argument(metavar="NAME[:KEY=VALUE,…]… [KEY=VALUE…]", help="arms, then keys for all of them")],
) -> None:
    """Same weights, items, seeds and budget for every arm: quatrain compare grpo gspo:minibatches=8 task=letters seeds=5 steps=100."""
    from quatrain.experiments.compare import compare as run
    from quatrain.training.settings import split_pairs

    names = [text for text in arms if "=" not in text.partition(":")[0] and not text.endswith((".yaml", ".yml"))]
    found = run(names, **split_pairs(text for text in arms if text not in names))
    for arm, seed, message in found.failures:
        typer.echo(f"{arm}, seed {seed}, failed: {message}", err=True)
    if any(found.runs.values()):
        _show(found.rows())
        _show(found.spent())
        typer.echo(found.note())
    typer.echo(f"numbers {found.folder / 'numbers.jsonl'}")
    if found.report:
        typer.echo(f"report  {found.report}")
    if found.interrupted:
        typer.echo("interrupted; the same command continues")
    if found.interrupted or found.failures:
        raise typer.Exit(1)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="a claim, a recipe, a family, a glob, or all")] = None,
    scale: Annotated[str, typer.Option(help="full, or smoke: the machinery in seconds, nothing recorded")] = "full",
    seeds: Annotated[str | None, typer.Option(help="fresh seeds, such as 10-19: how often the verdict agrees; nothing recorded")] = None,
    out: Annotated[Path, typer.Option(help="the folder for the runs")] = Path("runs/reproduce"),
    workers: Annotated[int | None, typer.Option(help="processes; default one per core")] = None,
    address: Annotated[str | None, typer.Option(help="of a Ray cluster")] = None,
    table: Annotated[bool, typer.Option("--table", help="write docs/systems.md from the recorded verdicts")] = False,
) -> None:
    """A paper's claim in miniature: reproduced, contradicted or inconclusive."""
    from quatrain.experiments.records import read_records, verdict_of, write_table
    from quatrain.experiments.reproduce import claims_of, told
    from quatrain.experiments.reproduce import reproduce as run

    if scale not in ("full", "smoke"):
        raise QuatrainError("the scale is full or smoke", given=scale)
    if name is None and not table:
        raise QuatrainError("which claim?", fix="quatrain reproduce all, or the name of a recipe or family")
    rows, well = [], True
    fresh = int(seeds) if seeds and seeds.isdigit() else seeds
    for claim in claims_of(name) if name else []:
        typer.echo(f"{claim.id}: {claim.says}" + (f"\n  stand-in: {claim.stand_in}" if claim.stand_in else ""))
        found = run(claim, seeds=fresh, scale=scale, out=out, workers=workers, address=address)
        rows.append(told(found))
        well = well and found.verdict is not None
        for arm, seed, message in found.failures:
            typer.echo(f"  {arm}, seed {seed}, failed: {message}", err=True)
        if found.blocks:
            known = verdict_of(claim.id, read_records())
            words = [block.word for block in found.blocks]
            told_as = f"the recorded verdict, {known}" if known else "no verdict is recorded"
            agree = f"{words.count(known)} of {len(words)} agree with " if known else f"{', '.join(words)}; "
            typer.echo(f"  fresh seeds, {len(words)} blocks of {claim.seeds}: {agree}{told_as}")
        if found.interrupted:
            break
    if rows:
        _show(rows)
        if scale == "smoke":
            typer.echo("smoke: the machinery works; these words are no verdicts")
    if table:
        typer.echo(f"table   {write_table()}")
    if not well:
        raise typer.Exit(1)


@app.command()
def systems(
    pattern: Annotated[str, typer.Argument(help="a glob over names")] = "*",
    family: Annotated[str | None, typer.Option(help="only this family")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list")] = False,
) -> None:
    """Every system: its family, its paper, and what it is in one line."""
    from quatrain.experiments.records import read_records, verdict_of
    from quatrain.training.registry import entries

    records = read_records()
    rows = [
        {
            "id": entry.name,
            "family": entry.family,
            "paper": entry.paper,
            "recipe": entry.build.__module__,
            "title": entry.title,
            "verdict": verdict_of(entry.name, records),
        }
        for entry in entries(pattern, family)
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    _show(
        [
            {
                "name": entry.name,
                "family": entry.family,
                "paper": entry.paper or "",
                "verdict": verdict_of(entry.name, records),
                "what it is": entry.summary,
            }
            for entry in entries(pattern, family)
        ]
    )


@app.command()
def explain(
    name: RecipeName,
    keys: Keys = None,
    beside: Annotated[str | None, typer.Option(help="mark the lines that differ from this recipe")] = None,
    picture: Annotated[Path | None, typer.Option(help="write a picture of the coefficients (.svg or .png)")] = None,
) -> None:
    """The equation and the four parts of a recipe; what differs from its neighbour."""
    from quatrain.training.describe import explain as describe
    from quatrain.training.registry import find, make
    from quatrain.training.settings import split_pairs

    entry, recipe = find(name), make(name, **split_pairs(keys or []))
    neighbour = make(beside) if beside else None
    head = entry.title + (f"  (arXiv {entry.paper})" if entry.paper else "")
    typer.echo(f"{head}\n" if entry.doc == entry.title else f"{head}\n\n{entry.doc}\n")
    typer.echo(describe(recipe, neighbour))
    if picture:
        from quatrain.reports.coefficients import ratio_curve_plot
        from quatrain.training.picture import ratio_curves

        curves = {**(ratio_curves(neighbour) if neighbour else {}), **ratio_curves(recipe)}
        ratio_curve_plot(curves, title=name).savefig(picture)
        typer.echo(f"\npicture  {picture}")


@app.command()
def eject(name: RecipeName, file: Annotated[Path, typer.Argument(help="the file to write")], keys: Keys = None) -> None:
    """Write a recipe, and all that it composes, as one readable and runnable file."""
    from quatrain.training.describe import eject as source
    from quatrain.training.run import plan
    from quatrain.training.settings import split_pairs

    if file.exists():
        raise QuatrainError("this file exists already", given=file, fix="choose another name")
    planned = plan(name, **split_pairs(keys or []))
    settings = {**planned.settings.model_dump(exclude_defaults=True), **planned.knobs}
    file.write_text(source(planned.recipe, settings))
    typer.echo(f"wrote {file}; run it with: python {file}")


@app.command()
def doctor(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME] KEY=VALUE…", help="a recipe (default grpo), and keys as for train")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the findings as JSON")] = False,
    strict: Annotated[bool, typer.Option(help="exit with 1 after warnings too")] = False,
) -> None:
    """Model, task, reward and recipe examined before training; exit code 1 with errors: quatrain doctor grpo model=DIRECTORY task=FILE."""
    from rich.console import Console

    from quatrain.experiments.doctor import doctor as examine
    from quatrain.experiments.doctor.show import shown
    from quatrain.training.settings import split_pairs

    names = [key for key in keys or [] if "=" not in key and not key.endswith((".yaml", ".yml"))]
    if len(names) > 1:
        raise QuatrainError("one recipe is examined at a time", given=", ".join(names), fix=f"quatrain doctor {names[0]} model=… task=…")
    found = examine(*names, **split_pairs(key for key in keys or [] if key not in names))
    if as_json:
        typer.echo(json.dumps(found.json(), indent=1))
    else:
        Console().print(shown(found))
    raise typer.Exit(found.exit_code(strict))


@app.command()
def diagnose(
    names: Annotated[list[str], typer.Argument(metavar="NAME…", help="recipes, with options as in grpo:group=16,kl=0")],
    beside: Annotated[str, typer.Option(help="the neighbour whose parts are switched in, one at a time; none leaves it out")] = "rloo",
    problem: Annotated[list[str] | None, typer.Option(help="bandit, noisy, tree, loops or turns; may be repeated; default: all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="all numbers as JSON")] = False,
    page: Annotated[Path | None, typer.Option(help="write an HTML page with tables and pictures")] = None,
    seed: Annotated[int, typer.Option(help="of what has to be sampled because it cannot be enumerated")] = 0,
    record: Annotated[bool, typer.Option(help="keep the main numbers in results/diagnosis; names may be families, or all")] = False,
) -> None:
    """The estimator of a recipe against the exact gradient, on problems small enough to enumerate: quatrain diagnose grpo dr-grpo rloo.

    Bias, variance and signal per token, exactly; along group size, staleness, temperature and top-p; which part causes what. Exit code 1
    if a fault is found.
    """
    if record:
        from quatrain.experiments.diagnose.record import chosen, read_diagnoses, record_diagnosis, sentence

        for name in chosen(names):
            path = record_diagnosis(name, seed=seed)
            typer.echo(f"{name}  {sentence(read_diagnoses(path.parent)[name])}")
        return
    from quatrain.experiments.diagnose.command import run_diagnosis

    text, clean = run_diagnosis(names, beside, problem, as_json, page, seed)
    typer.echo(text)
    if not clean:
        raise typer.Exit(1)


@app.command()
def report(
    run: Annotated[Path | None, typer.Argument(help="a run's folder, as written by train")] = None,
    atlas: Annotated[bool, typer.Option("--atlas", help="all systems on one page: equations, differences, diagnoses, verdicts")] = False,
    out: Annotated[Path, typer.Option(help="where the atlas goes")] = Path("runs/atlas.html"),
) -> None:
    """Write a run's HTML report again, or the atlas of all systems."""
    from quatrain.experiments.atlas import write_atlas
    from quatrain.reports.run import run_report

    if atlas == (run is not None):
        raise QuatrainError("a report is of one run, or the atlas of all systems", fix="quatrain report RUN, or quatrain report --atlas")
    typer.echo(f"atlas   {write_atlas(out)}" if atlas else f"report  {run_report(run)}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the folder for the runs and the report")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="of the three runs")] = 0,
) -> None:
    """Base, SFT, GRPO and HPT side by side on the embedded default, in about three minutes on two CPU cores."""
    from quatrain.experiments.demo import run_demo

    typer.echo(f"report  {run_demo(out, seed)}")


def _show(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> None:
    from rich.console import Console

    from quatrain.reports.table import results_table

    console = Console()
    wide = console if title is None or console.is_terminal else Console(width=180)  # a file has no edge
    wide.print(results_table(rows, title=title))


def main(argv: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one message on stderr and exit code 2."""
    try:
        app(argv)
    except QuatrainError as error:
        typer.echo(f"quatrain: {error}", err=True)
        sys.exit(2)
