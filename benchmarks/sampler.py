"""Sampling: Quatrain's sampler and ``model.generate``, in turn, same weights, prompts and number of samples.

The pupils that half know their task often say the same in several samples of a group, which are decoded as one row until they
part; the last case has an untaught model, whose samples part at once: what is left there is faster code.

python benchmarks/sampler.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, interleaved, median, report, spread


def case(kind: str, prompts: int, group: int, longest: int, forced: bool, taught: bool = True) -> tuple[dict[str, Any], dict[str, float]]:
    """The two sides of a case, and where each notes its mean number of tokens."""
    import torch

    from benchmarks.reference import Problems, load, untaught
    from quatrain.models.backbone import split
    from quatrain.models.sampler import Stops, sample
    from quatrain.protocols import Sampling

    model, tokens = load(kind)
    model = model if taught else untaught()
    model.eval()
    encoded = [tokens(Problems(kind)[i].prompt).input_ids for i in range(prompts)]
    width = max(map(len, encoded))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in encoded])
    seeds = torch.arange(prompts * group)
    seen: dict[str, float] = {}
    ends = {"eos_token_id": None} if forced else {"eos_token_id": 1}

    def ours() -> None:
        out = sample(split(model), encoded, group, Sampling(max_actions=longest), seeds, Stops(() if forced else (1,)))
        seen["quatrain"] = out.mask.sum(1).float().mean().item()

    def generate() -> None:
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=ids != 0, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=group,
                max_new_tokens=longest, min_new_tokens=longest if forced else None, pad_token_id=0, **ends,
            )[:, width:]  # fmt: skip
        ended = (out == 1).cumsum(1)
        seen["generate"] = float(out.shape[1]) if forced else ((ended == 0) | ((ended == 1) & (out == 1))).sum(1).float().mean().item()

    return {"quatrain": ours, "generate": generate}, seen


def main() -> None:
    args = arguments(__doc__)
    rows = []
    for name, *shape in (
        ("8 rows × 64 tokens", "chain", 1, 8, 64, True),
        ("512 rows × 64 tokens", "chain", 64, 8, 64, True),
        ("512 rows, short answers", "short", 64, 8, 8, False),
        ("512 rows, chains", "chain", 64, 8, 64, False),
        ("512 rows × 64 tokens, none alike", "chain", 64, 8, 64, True, False),
    ):
        sides, seen = case(*shape)
        times = interleaved(sides, args.repeats)
        ratio = median([b / a for a, b in zip(times["quatrain"], times["generate"], strict=True)])
        lengths = f"{seen['quatrain']:.1f} and {seen['generate']:.1f}"
        rows.append((name, lengths, spread(times["quatrain"]), spread(times["generate"]), f"{ratio:.2f}×"))
    report(f"sampler threads {args.threads}", args.threads, ("case", "mean tokens", "quatrain", "model.generate", "ratio"), rows)


if __name__ == "__main__":
    main()
