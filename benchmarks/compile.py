"""torch.compile of the decoder for the update: scoring a round's samples forward and backward, compiled beside eager.

Both sides score the same batches, in turn, on copies of one model; each batch has its own shape, as in training. Times are
processor time of this one-threaded process (and of the C++ compiler, for the warm-up), which others on the machine disturb least.
Needs a C++ compiler. ``--repeats`` is the number of passes over eight batches.

    python benchmarks/compile.py --model short       # the reference model, 64 × 8 answers of about 4 tokens; chain: of about 46
    python benchmarks/compile.py --model embedded    # the embedded model, 16 × 8 answers to letters
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, median, report

BATCHES = 8


def sampled(kind: str) -> tuple[Any, list[Any]]:
    """(policy, what it says to the problems of eight rounds)."""
    import torch

    from quatrain.protocols import Sampling

    if kind == "embedded":
        from quatrain.tasks.embedded import tiny
        from quatrain.tasks.loading import load_task

        policy, task, prompts, longest = tiny(), load_task("letters"), 16, 32
        items = task.starts("train", 0, prompts * BATCHES)
        asked = [policy.encode(item.prompt) for item in items]
    else:
        from benchmarks.reference import LONGEST, Problems, load
        from quatrain.models.causal_lm import CausalLM

        policy, prompts, longest = CausalLM(*load(kind)), 64, LONGEST[kind]
        asked = [policy.encode(Problems(kind)[index].prompt) for index in range(prompts * BATCHES)]
    rounds = [asked[begin : begin + prompts] for begin in range(0, len(asked), prompts)]
    seeds = torch.arange(8 * prompts)
    return policy, [policy.sample(some, 8, Sampling(max_actions=longest), seeds + 10_000 * i) for i, some in enumerate(rounds)]


def update(policy: Any, batch: Any) -> None:
    """The gradient of a sum of log-probabilities with given coefficients."""
    import torch

    from quatrain.parts.likelihoods import LogProb

    score = policy.score(batch, [LogProb()])[LogProb()]
    coefficient = torch.randn(score.shape, generator=torch.Generator().manual_seed(0))
    (coefficient * score / score.numel()).sum().backward()


def spent() -> float:
    """Processor seconds of this process and of those that it waited for."""
    return process_time() + os.times().children_user + os.times().children_system


def main() -> None:
    args = arguments(__doc__, model=("short", "short, chain or embedded"))
    # Nothing compiled before is used again, and the compiler is one process that is waited for.
    with tempfile.TemporaryDirectory() as empty:
        os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = empty, "1"
        measure(args)


def measure(args: Any) -> None:
    policy, batches = sampled(args.model)
    sides = {"eager": policy, "compiled": policy.clone()}
    sides["compiled"].module.requires_grad_(True)
    sides["compiled"].backbone.decoder.compile(dynamic=True)
    warm, began = {}, perf_counter()
    for name, side in sides.items():
        first = spent()
        for batch in batches:
            update(side, batch)
        warm[name] = spent() - first
    wall = perf_counter() - began
    gap = max(
        ((a.grad - b.grad).abs().max() / a.grad.abs().max()).item()
        for a, b in zip(*(side.module.parameters() for side in sides.values()), strict=True)
    )
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for batch in batches:
            for name, side in sides.items():
                first = process_time()
                update(side, batch)
                times[name].append(process_time() - first)
    step = {name: median(values) for name, values in times.items()}
    paid = warm["compiled"] - BATCHES * step["compiled"]
    gain = median([eager - compiled for eager, compiled in zip(times["eager"], times["compiled"], strict=True)])
    even = f"after {paid / gain:,.0f} updates" if gain > 0 else "never"
    rows = [
        (
            name,
            f"{1e3 * step[name]:.1f} ms ({1e3 * min(times[name]):.1f}–{1e3 * max(times[name]):.1f})",
            "–" if name == "eager" else f"{paid:.0f} s",
            f"{warm[name] + (200 - BATCHES) * step[name]:.0f} s",
            "–" if name == "eager" else even,
        )
        for name in sides
    ]
    first = batches[0]
    notes = [
        f"{len(first)} rows, {int(first.mask.sum())} answer tokens in the first of {BATCHES} batches. Processor time; the first pass "
        f"took {wall:.0f} s of wall clock. Largest difference of a gradient: {gap:.1e} (relative)."
    ]
    report(f"compile {args.model}", args.threads, ("side", "an update", "warm-up", "200 updates", "pays"), rows, notes)


if __name__ == "__main__":
    main()
