"""Tokens in, tokens out: what is trained on is what was sampled, after the prompt that was asked, with its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.experiments.doctor.finding import Finding, judged, ok
from quatrain.experiments.doctor.gradients import with_tool_output
from quatrain.experiments.doctor.patient import Patient
from quatrain.experiments.doctor.sampler import gaps
from quatrain.training.driver import run

HOT = 2.0  # a temperature at which tokenisations that the tokenizer itself would not choose are common


@dataclass
class Witness:
    """sampled: seed → tokens as the sampler returned them. trained, changed: rows that the scorer was given, and how many differed."""

    sampled: dict[int, list[int]] = field(default_factory=dict)
    trained: int = 0
    changed: int = 0

    def note(self, batch: Batch) -> None:
        for seed, actions, mask in _rows(batch):
            self.sampled[seed] = actions[mask].tolist()

    def compare(self, batch: Batch) -> None:
        for seed, actions, mask in _rows(batch):
            if seed in self.sampled:
                self.trained += 1
                self.changed += self.sampled[seed] != actions[mask].tolist()


def _rows(batch: Batch) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(seed, actions, mask) of each row that the policy sampled itself."""
    if "seed" not in batch:
        return
    actions, mask = batch.actions.cpu(), batch.mask.cpu()
    own = (batch["origin"].cpu() == Origin.POLICY) | ~mask if "origin" in batch else torch.ones_like(mask)
    for row, seed in enumerate(batch["seed"].tolist()):
        if bool(own[row].all()):
            yield seed, actions[row], mask[row]


@contextmanager
def witnessed(policy: Any) -> Iterator[Witness]:
    """Everything that this very policy object samples and scores is seen, and not changed."""
    witness, sample, score = Witness(), policy.sample, policy.score
    own = {name: value for name, value in vars(policy).items() if name in ("sample", "score")}

    def seen_sample(*args: Any, **keys: Any) -> Batch:
        batch = sample(*args, **keys)
        witness.note(batch)
        return batch

    def seen_score(batch: Batch, *args: Any, **keys: Any) -> Any:
        witness.compare(batch)
        return score(batch, *args, **keys)

    policy.sample, policy.score = seen_sample, seen_score
    try:
        yield witness
    finally:
        del policy.sample, policy.score
        vars(policy).update(own)


def check_tokens(patient: Patient) -> Iterator[Finding]:
    """The sampled tokens arrive unchanged, in the task's rollout and in the recipe's updates."""
    from quatrain.experiments.doctor.drift import still

    policy, hot = patient.policy, replace(patient.sampling, temperature=HOT, top_p=1.0, top_k=0)
    with witnessed(policy) as witness:
        batch = patient.sample(hot, name="hot")
        witness.compare(batch)
        if patient.recipe is not None and patient.samples:
            run(still(patient.recipe), patient.state(lr=0.0, temperature=HOT, top_p=1.0, top_k=0))
    other = sum(
        policy.tokenizer(policy.decode(tokens), add_special_tokens=False).input_ids != _bare(policy, tokens)
        for tokens in witness.sampled.values()
    )
    share = other / max(1, len(witness.sampled))
    yield judged(
        witness.changed == 0,
        "tokens are never re-encoded",
        f"{len(witness.sampled)} completions went through rollout and training in {witness.trained} rows, "
        f"{witness.changed} changed on the way; "
        f"decoding and encoding again would change {share:.0%} of them",
        "the text is the same and the tokens are not: their probabilities were never those that were sampled, and the ratio is wrong",
        "keep the token ids that the sampler returned; decode only for rewards and people",
    )


def _bare(policy: Any, tokens: Sequence[int]) -> list[int]:
    """Without the final end-of-sequence token."""
    return list(tokens[:-1]) if tokens and tokens[-1] in ends(policy) else list(tokens)


def ends(policy: Any) -> set[int]:
    """Tokens that end a completion: the tokenizer's and those of the model's generation settings."""
    config = getattr(getattr(policy, "backbone", policy), "model", policy.module)
    more = getattr(getattr(config, "generation_config", None), "eos_token_id", None)
    return {policy.tokenizer.eos_token_id, *(more if isinstance(more, (list, tuple)) else [more])} - {None}


def check_prompts(patient: Patient) -> Iterator[Finding]:
    """Before the first action stands the encoded prompt, and the actions do not repeat it."""
    batch, policy = patient.batch, patient.policy
    group = len(batch) // len(patient.starts)
    prompts = [list(policy.encode(item.prompt)) for item in patient.starts for _ in range(group)]
    context = batch.contexts["policy"]
    wrong = [row for row, prompt in enumerate(prompts) if context["tokens"][row][context["mask"][row]].tolist() != prompt]
    repeated = sum(
        len(prompt) > 1 and batch.actions[row][batch.mask[row]].tolist()[: len(prompt)] == prompt for row, prompt in enumerate(prompts)
    )
    yield judged(
        not wrong and repeated < max(2, 0.5 * len(prompts)),
        "prompts are context",
        f"{len(prompts) - len(wrong)} of {len(prompts)} rows begin after their encoded prompt; {repeated} repeat it as actions",
        "the policy would be trained to write its prompts, or answer another one than was asked",
        "the prompt stands in contexts['policy'], the mask is True on sampled tokens only",
    )


def check_ends(patient: Patient) -> Iterator[Finding]:
    """A completion that ended has its end-of-sequence token, with mask True; one that was cut has none."""
    batch, policy = patient.batch, patient.policy
    stops = ends(policy)
    pad = "pad is eos" if policy.tokenizer.pad_token_id in stops else "pad is not eos"
    cut = (batch["truncated"] & batch.mask).any(1).tolist()
    last = [row[mask].tolist()[-1:] for row, mask in zip(batch.actions, batch.mask, strict=True)]
    texts = patient.sampling.stop
    finished = [bool(set(tokens) & stops) for tokens in last]
    unlearnt = sum(not end and not was_cut and not texts for end, was_cut in zip(finished, cut, strict=True))
    untrue = sum(end and was_cut for end, was_cut in zip(finished, cut, strict=True))
    inside = sum(bool(set(row[mask].tolist()[:-1]) & stops) for row, mask in zip(batch.actions, batch.mask, strict=True))
    yield judged(
        not unlearnt and not untrue and not inside,
        "the end is learnt",
        f"{pad}: {sum(finished)} of {len(last)} completions end with eos and {sum(cut)} were cut; {unlearnt} ended without it, "
        f"{untrue} are called cut and have it, {inside} go on after it",
        "a policy whose end-of-sequence token is masked out never learns to stop (or is taught to go on)",
        "mask by length, not by comparing tokens with the pad id; the eos of a completion is an action",
    )
    shown = policy.demonstrate(
        [policy.encode(item.prompt) for item in patient.starts[:2]], [item.answer or "1" for item in patient.starts[:2]]
    )
    learnt = sum(bool(set(row[mask].tolist()[-1:]) & stops) for row, mask in zip(shown.actions, shown.mask, strict=True))
    yield judged(
        learnt == len(shown),
        "the end is learnt",
        f"{pad}: {learnt} of {len(shown)} demonstrations end with eos under the mask",
        "supervised fine-tuning would not teach the policy to stop",
        "append eos to every demonstration and keep its mask True",
    )


def check_context(patient: Patient) -> Iterator[Finding]:
    """What is present is attended, whether it is learnt or not: masking some actions out of the loss changes no other's probability."""
    whole = patient.batch
    fewer, mask = with_tool_output(whole)
    if not bool((whole.mask & ~mask).any()):
        yield ok("loss mask is not attention mask", "no completion is long enough to hide a part of it")
        return
    gap = gaps(patient.logp(whole), patient.logp(fewer), mask)
    yield judged(
        gap.max().item() <= patient.tolerance.logp_max,
        "loss mask is not attention mask",
        f"{int((whole.mask & ~mask).sum())} tokens made tool output: the others' log-probabilities move by at most {gap.max():.2g} nats; "
        f"allowed {patient.tolerance.logp_max:g}",
        "tokens without a loss (prompts, tool output) would be invisible to the ones after them",
        "attend to batch.present and the prompt; batch.mask only says where the policy acted",
    )
