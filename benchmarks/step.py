"""A GRPO step end to end: Quatrain's loop and TRL's GRPOTrainer, in one process, a step of one, then a step of the other.

Same initial weights, prompts, group (64 × 8), longest answer, loss (DAPO's clip and token mean, no KL), AdamW, learning rate
and clipping; each samples its own answers. With ``--until`` each side trains alone until the running reward is there.

    python benchmarks/step.py --peer-python trl-env/bin/python --task short
    python benchmarks/step.py --peer-python trl-env/bin/python --task short --until 0.6 --seeds 3
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import arguments, has_peer, median, report, spread

PROMPTS, GROUP = 64, 8


class Ours:
    """Rounds of grpo through the library's own driver."""

    def __init__(self, kind: str, model: Any, tokens: Any, rate: float, seed: int):
        from benchmarks.reference import LONGEST, Exact, Problems
        from quatrain.models.causal_lm import CausalLM
        from quatrain.parts.aggregations import token_mean
        from quatrain.parts.bounds import Clip
        from quatrain.tasks.text import TextTask
        from quatrain.training.driver import build
        from quatrain.training.executors import synchronous
        from quatrain.training.registry import make
        from quatrain.training.state import State

        recipe = make("grpo", group=GROUP, kl=0.0).but(bound=Clip(0.2, 0.28), aggregation=token_mean)
        task = TextTask(kind, Problems(kind), None, Exact(), seed=seed)
        knobs = {"prompts": PROMPTS, "max_actions": LONGEST[kind], "lr": rate, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        self.state = State(task, {"policy": CausalLM(copy.deepcopy(model), tokens)}, seed=seed, knobs=knobs)
        build(recipe, self.state, {})
        self.stage, self.synchronous = recipe.stages[0], synchronous

    def step(self) -> dict[str, float]:
        self.synchronous(self.stage, self.state)
        self.state.round, self.state.step = self.state.round + 1, self.state.step + 1
        return self.state.close_round()


def trainer(kind: str, model: Any, tokens: Any, rate: float, seed: int, steps: int, callback: Any) -> Any:
    """TRL's trainer with the same settings; everything else as its defaults are, but for what is slower here (checkpointing, bf16)."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.reference import LONGEST, Problems

    items = [Problems(kind)[i] for i in range(seed * 20_000, seed * 20_000 + PROMPTS * steps)]
    data = Dataset.from_dict({"prompt": [item.prompt for item in items], "answer": [item.answer for item in items]})

    def exact(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(completion == wanted) for completion, wanted in zip(completions, answer, strict=True)]

    settings = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=LONGEST[kind], loss_type="dapo", beta=0.0, epsilon=0.2, epsilon_high=0.28, temperature=1.0,
        top_p=1.0, top_k=0, learning_rate=rate, lr_scheduler_type="constant", max_steps=steps, max_grad_norm=1.0, weight_decay=0.0,
        optim="adamw_torch", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False,
        gradient_checkpointing=False, use_cpu=True, seed=seed, shuffle_dataset=False,
    )  # fmt: skip
    return GRPOTrainer(
        model=copy.deepcopy(model), reward_funcs=exact, args=settings, train_dataset=data, processing_class=tokens, callbacks=[callback]
    )


def interleaved_steps(args: Any) -> None:
    from transformers import TrainerCallback

    from benchmarks.reference import load

    model, tokens = load(args.task)
    ours = Ours(args.task, model, tokens, args.rate, 0)
    times: dict[str, list[float]] = {"quatrain": [], "collect": [], "fit": [], "trl": [], "generate": []}
    seen: dict[str, float] = {"ours": 0.0, "theirs": 0.0}

    def round_of_ours(keep: bool) -> None:
        began = perf_counter()
        metrics = ours.step()
        if keep:
            times["quatrain"].append(perf_counter() - began)
            times["collect"].append(metrics["seconds/collect"])
            times["fit"].append(metrics["seconds/fit/policy"])
            seen["active"] = metrics["rows/active"]
            seen["ours"] += metrics["reward"] / args.repeats

    if not has_peer():
        for repeat in range(args.repeats + 2):
            round_of_ours(repeat >= 2)
        rows = [("quatrain", *(spread(times[name]) for name in ("quatrain", "collect", "fit")), "1.0×")]
        report(f"step {args.task} alone threads {args.threads}", args.threads, ("side", "step", "sampling", "update", "ratio"), rows)
        return

    class Turns(TrainerCallback):
        mark = perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            passed = perf_counter() - self.mark
            if state.global_step > 2:
                times["trl"].append(passed)
                times["generate"].append(spent[-1])
            round_of_ours(state.global_step > 2)
            self.mark = perf_counter()

    turns = Turns()
    peer = trainer(args.task, model, tokens, args.rate, 0, args.repeats + 2, turns)
    spent: list[float] = []
    inner = peer._generate_and_score_completions

    def timed(inputs: Any) -> Any:
        began = perf_counter()
        out = inner(inputs)
        spent.append(perf_counter() - began)
        seen["length"] = out["completion_mask"].sum(1).float().mean().item()
        return out

    peer._generate_and_score_completions = timed
    turns.mark = perf_counter()
    peer.train()
    update = [whole - part for whole, part in zip(times["trl"], times["generate"], strict=True)]
    ratio = median([theirs / mine for theirs, mine in zip(times["trl"], times["quatrain"], strict=True)])
    rows = [
        ("quatrain", spread(times["quatrain"]), spread(times["collect"]), spread(times["fit"]), "1.0×"),
        ("trl", spread(times["trl"]), spread(times["generate"]), spread(update), f"{ratio:.2f}×"),
    ]
    notes = [
        f"{PROMPTS} prompts × {GROUP}; mean answer {seen['length']:.1f} tokens (the last of TRL's steps); "
        f"quatrain's mean reward {seen['ours']:.2f}, rows with a gradient {seen['active']:.0%}. "
        "The ratio is the median over pairs. Sampling includes rewards."
    ]
    report(f"step {args.task} threads {args.threads}", args.threads, ("side", "step", "sampling", "update", "ratio"), rows, notes)


def until(args: Any) -> None:
    """Seconds until the mean reward of the last five steps is at the goal, each side alone, seed by seed."""
    from transformers import TrainerCallback

    from benchmarks.reference import load

    model, tokens = load(args.task)
    rows = []
    for seed in range(args.seeds):
        ours, rewards = Ours(args.task, model, tokens, args.rate, seed), []
        began = perf_counter()
        while len(rewards) < args.most and (len(rewards) < 5 or sum(rewards[-5:]) < 5 * args.until):
            rewards.append(ours.step()["reward"])
        mine = (perf_counter() - began, len(rewards))
        theirs: list[float] = []

        class Goal(TrainerCallback):
            began = 0.0

            def on_step_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
                self.began = self.began or perf_counter()

            def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
                theirs.append(peer._metrics["train"]["reward"][-1])  # noqa: B023
                control.should_training_stop = len(theirs) >= 5 and sum(theirs[-5:]) >= 5 * args.until  # noqa: B023

        goal = Goal()
        peer = trainer(args.task, model, tokens, args.rate, seed, args.most, goal)
        peer.train()
        other = (perf_counter() - goal.began, len(theirs))
        there = [len(found) >= 5 and sum(found[-5:]) >= 5 * args.until for found in (rewards, theirs)]
        said = [
            f"{seconds:.1f} s, {steps} steps{'' if reached else ' (not reached)'}"
            for (seconds, steps), reached in zip((mine, other), there, strict=True)
        ]
        rows.append((seed, *said, f"{other[0] / mine[0]:.2f}×" if all(there) else "–"))
        print(rows[-1], flush=True)
    note = f"Until a mean reward of {args.until} over five steps, at most {args.most} steps; learning rate {args.rate}."
    report(f"reward {args.task} threads {args.threads}", args.threads, ("seed", "quatrain", "trl", "ratio"), rows, [note])


def main() -> None:
    args = arguments(
        __doc__, task=("short", "short or chain"), rate=(3e-4, "learning rate"), until=(0.0, "a mean reward to reach"),
        seeds=(3, "seeds of --until"), most=(120, "the most steps of --until"),
    )  # fmt: skip
    until(args) if args.until else interleaved_steps(args)


if __name__ == "__main__":
    main()
