"""How the cost of a forward and backward grows with the tokens, and the scorer's memory with vocabulary and length. No peer.

python benchmarks/scaling.py            → results/scaling.md, scaling.png
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import HERE, arguments, interleaved, median, memory_of, peak_above, report

TOKENS = tuple(2**power for power in range(8, 18))
LENGTH = 64


def run_of(tokens: int):
    """Score and differentiate that many tokens, 64 to a row, of the reference model."""
    import torch

    from benchmarks.reference import untaught
    from quatrain.batch import Batch
    from quatrain.models.backbone import split
    from quatrain.models.scorer import score
    from quatrain.parts.likelihoods import Entropy, LogProb
    from quatrain.training.batching import micro_batches

    model, rows = untaught().eval(), tokens // LENGTH
    ids = torch.randint(2, 64, (rows, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    context = {"tokens": ids[:, :1], "mask": torch.ones(rows, 1, dtype=torch.bool)}
    batch = Batch(torch.ones(rows, LENGTH, dtype=torch.bool), ids[:, 1:], contexts={"policy": context})

    def run() -> None:
        for part in micro_batches(batch, 16384):
            score(split(model), part, [LogProb(), Entropy()])[LogProb()].sum().backward()

    return run


def head_memory(positions: int, vocabulary: int) -> float:
    """MB above hidden states and head at the peak of the head's forward and backward, all gradients included."""
    import torch

    from quatrain.models.fused import log_prob_and_entropy

    hidden = torch.randn(positions, 256, requires_grad=True)
    weight = torch.randn(vocabulary, 256, requires_grad=True)
    action = torch.zeros(positions, dtype=torch.long)
    return peak_above(lambda: log_prob_and_entropy(hidden, weight, action)[0].sum().backward())


def main() -> None:
    args = arguments(__doc__)
    if args.memory:
        print(head_memory(*map(int, args.memory.split(","))))
        return
    times = interleaved({str(tokens): run_of(tokens) for tokens in TOKENS}, args.repeats)
    rows = [(tokens, 1e3 * median(times[str(tokens)]), 1e6 * median(times[str(tokens)]) / tokens) for tokens in TOKENS]
    shapes = [(1024, 8192), (1024, 32768), (1024, 131072), (4096, 32768), (16384, 32768)]
    memory = [
        f"The head at {positions:,} positions × {vocabulary:,} words: {memory_of(f'{positions},{vocabulary}'):.0f} MB at the peak, "
        f"{vocabulary * 256 * 4 / 2**20:.0f} of them its own gradient; all logits would be {positions * vocabulary * 4 / 2**20:.0f} MB."
        for positions, vocabulary in shapes
    ]
    report("scaling", args.threads, ("tokens", "ms", "µs per token"), rows, memory)
    plot(rows)


def plot(rows: list[tuple[int, float, float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3.5))
    axis.loglog([row[0] for row in rows], [row[1] for row in rows], "o-", label="measured")
    axis.loglog([row[0] for row in rows], [rows[-1][1] * row[0] / rows[-1][0] for row in rows], "--", color="gray", label="linear")
    axis.set_xlabel("tokens")
    axis.set_ylabel("ms, forward and backward")
    axis.legend()
    figure.tight_layout()
    figure.savefig(HERE / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
