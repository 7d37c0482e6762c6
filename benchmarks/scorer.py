"""Log-probability and entropy of a large vocabulary, forward and backward: Quatrain, TRL's chunked head, full logits.

The loss is Σ c·log π with fixed coefficients, as a policy gradient's; the entropy is measured. Same weights, same tokens.

    python benchmarks/scorer.py --peer-python trl-env/bin/python
    python benchmarks/scorer.py --peer-python trl-env/bin/python --exact 1    # how far each is from float64 instead
"""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, has_peer, interleaved, median, memory_of, peak_above, report, spread

VOCABULARY, WIDTH = 151_936, 256


def model():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )
    ).eval()  # fmt: skip


def problem(rows: int, length: int):
    """Tokens [rows, length + 1] and coefficients [rows, length]."""
    import torch

    ids = torch.randint(2, VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    return ids, torch.randn(rows, length, generator=torch.Generator().manual_seed(2)) / (rows * length)


def sides(rows: int, length: int) -> dict:
    """name → a function that leaves the gradient of the same loss in its model; returns model, log-probability and entropy."""
    import torch

    from quatrain.batch import Batch
    from quatrain.models.backbone import split
    from quatrain.models.scorer import score
    from quatrain.parts.likelihoods import Entropy, LogProb

    ids, coefficient = problem(rows, length)
    shared = model()

    def ours():
        shared.zero_grad(set_to_none=True)
        context = {"tokens": ids[:, :1], "mask": torch.ones(rows, 1, dtype=torch.bool)}
        batch = Batch(torch.ones(rows, length, dtype=torch.bool), ids[:, 1:], contexts={"policy": context})
        found = score(split(shared), batch, [LogProb(), Entropy()])
        (-(coefficient * found[LogProb()]).sum()).backward()
        return shared, found[LogProb()].detach(), found[Entropy()].detach()

    def full():
        shared.zero_grad(set_to_none=True)
        logits = shared(input_ids=ids, use_cache=False).logits[:, :-1]
        log_p = logits.log_softmax(-1)
        chosen = log_p.gather(-1, ids[:, 1:, None])[..., 0]
        with torch.no_grad():
            entropy = torch.cat([-(part.exp() * part).sum(-1) for part in log_p.flatten(0, 1).split(128)]).view(rows, length)
        (-(coefficient * chosen).sum()).backward()
        return shared, chosen.detach(), entropy

    found = {"quatrain": ours}
    if has_peer():
        from trl.trainer.utils import add_fused_lm_head

        theirs = model()
        add_fused_lm_head(theirs, outputs=("log_probs", "entropy"))

        def trl():
            theirs.zero_grad(set_to_none=True)
            labels = ids.clone()
            labels[:, 0] = -100
            out = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
            (-(coefficient * out.log_probs[:, -length:]).sum()).backward()
            return theirs, out.log_probs[:, -length:].detach(), out.entropy[:, -length:].detach()

        found["trl chunked head"] = trl
    return found | {"full logits": full}


def floor(positions: int, plain: bool = False) -> float:
    """Seconds of the four matrix products alone (logits, Σ π w, logits again, weights), in the blocks that the scorer uses.

    ``plain``: torch.mm instead of the library that the scorer multiplies with on this machine.
    """
    import torch

    from quatrain.models.fused import BLOCK, _blocks
    from quatrain.models.products import product

    multiply = (lambda a, b: a @ b.T) if plain else product
    hidden, weight = torch.randn(positions, WIDTH), torch.randn(VOCABULARY, WIDTH)
    total, slope = torch.zeros_like(hidden), torch.zeros_like(weight)
    began = perf_counter()
    for rows, words in _blocks(hidden, weight, BLOCK):
        total[rows] += multiply(multiply(hidden[rows], weight[words]), weight[words].T)
    for rows, words in _blocks(hidden, weight, BLOCK):
        slope[words] += multiply(multiply(weight[words], hidden[rows]), hidden[rows].T)
    return perf_counter() - began


def head_alone(positions: int):
    """The written-out head on given hidden states, forward and backward."""
    import torch

    from quatrain.models.fused import log_prob_and_entropy

    hidden, weight = torch.randn(positions, WIDTH, requires_grad=True), (torch.randn(VOCABULARY, WIDTH) * 0.05).requires_grad_()
    action, coefficient = torch.randint(VOCABULARY, (positions,)), torch.randn(positions)

    def run() -> None:
        hidden.grad = weight.grad = None
        log_prob, _ = log_prob_and_entropy(hidden, weight, action)
        (coefficient * log_prob).sum().backward()

    return run


def main() -> None:
    args = arguments(__doc__, rows=(16, "sequences"), length=(512, "actions of each"), exact=(0, "1: distances from float64, no times"))
    if args.memory:
        run = sides(args.rows, args.length)[args.memory]
        gc.collect()
        print(peak_above(run))
        return
    if args.exact:
        exactness(args)
        return
    runs, positions = sides(args.rows, args.length), args.rows * args.length
    timed = {name: run for name, run in runs.items() if name != "full logits" or positions <= 1024}
    results = {name: found(*run()) for name, run in timed.items()}
    times = interleaved(timed, args.repeats, warm=False)
    alone = {"floor": lambda: floor(positions), "head": head_alone(positions), "torch.mm": lambda: floor(positions, plain=True)}
    products = interleaved(alone, args.repeats)
    memory = {name: memory_of(name) for name in runs}
    ours = median(times["quatrain"])
    table = [
        (name, spread(times[name]) if name in times else "–", f"{median(times[name]) / ours:.2f}×" if name in times else "–",
         f"{memory[name]:.0f} MB" if memory[name] < math.inf else "more than there is", f"{memory[name] / memory['quatrain']:.1f}×")
        for name in runs
    ]  # fmt: skip
    notes = [
        f"{args.rows} × {args.length} tokens, V = {VOCABULARY}, 4 layers, width {WIDTH}. Memory is the peak above the loaded model, "
        "gradients of all weights included (156 MB of them the head's).",
        f"The head alone: {spread(products['head'])}, its four matrix products alone, in the same blocks: {spread(products['floor'])}: "
        f"{median([h / f for h, f in zip(products['head'], products['floor'], strict=True)]):.2f}×. The same products by torch.mm: "
        f"{spread(products['torch.mm'])}.",
    ]
    mine = results.pop("quatrain")
    for name, theirs in results.items():
        log_prob, entropy, gradient, norm = gaps(mine, theirs)
        notes.append(
            f"Largest difference from {name}, relative: log-probability {log_prob:.1e}, entropy {entropy:.1e}, gradient {gradient:.1e} "
            f"(norm {norm:.1e})."
        )
    columns = ("side", "time", "of quatrain's", "peak memory", "of quatrain's")
    report(f"scorer {args.rows}x{args.length} threads {args.threads}", args.threads, columns, table, notes)


def exactness(args) -> None:
    """How far values and gradients of every side are from the plain computation in float64."""
    truth = found(*in_float64(args.rows, args.length))
    rows = []
    for name, run in sides(args.rows, args.length).items():
        if name != "full logits" or args.rows * args.length <= 1024:
            rows.append((name, *(f"{gap:.1e}" for gap in gaps(found(*run()), truth))))
    name = f"scorer exactness {args.rows}x{args.length} threads {args.threads}"
    report(
        name,
        args.threads,
        ("side", "log-probability", "entropy", "gradient", "gradient, norm"),
        rows,
        ["The largest error, of the largest value; of the gradient also the norm of its error, of its norm."],
    )


def in_float64(rows: int, length: int):
    """As a side: logits, softmax and autograd in double precision, 64 positions at a time."""
    import torch

    exact = model().double()
    ids, coefficient = problem(rows, length)
    hidden = exact.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    states, log_probs, entropies = hidden.detach().requires_grad_(), [], []
    for part in torch.arange(rows * length).split(64):
        log_p = (states[part] @ exact.lm_head.weight.T).log_softmax(-1)
        chosen = log_p.gather(-1, ids[:, 1:].flatten()[part, None])[:, 0]
        (-(coefficient.flatten()[part].double() * chosen).sum()).backward()
        log_probs.append(chosen.detach())
        entropies.append(-(log_p.detach().exp() * log_p.detach()).sum(-1))
    hidden.backward(states.grad)
    return exact, torch.cat(log_probs).view(rows, length), torch.cat(entropies).view(rows, length)


def found(model, log_prob, entropy) -> tuple:
    """What a side computed, its gradients kept from the next run."""
    return log_prob, entropy, [parameter.grad.clone() for parameter in model.parameters()]


def gaps(mine: tuple, theirs: tuple) -> tuple[float, float, float, float]:
    """Largest differences of log-probability, entropy and gradient, each relative to the largest of ``theirs``; that of the
    gradient also as a norm, of its norm."""
    largest = max(gradient.abs().max() for gradient in theirs[2])
    values = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(mine[:2], theirs[:2], strict=True)]
    pairs = list(zip(mine[2], theirs[2], strict=True))
    norm = sum((a - b).double().square().sum() for a, b in pairs) / sum(b.double().square().sum() for _, b in pairs)
    return *values, max((a - b).abs().max() / largest for a, b in pairs).item(), norm.sqrt().item()


if __name__ == "__main__":
    main()
