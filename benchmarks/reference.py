"""The reference of the end-to-end benchmarks: a 402-thousand-parameter Qwen3 shape, two tasks, and a pupil that half knows them.

short   two-digit additions: answers of 2 to 4 tokens, the end included.
chain   12 to 18 terms of a progression up to a given one: ``03+4=51:`` → ``03 07 11 … 51``, about 45 tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from quatrain.protocols import Item

CHARACTERS = "0123456789+=: abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWX"[:62]
LONGEST = {"short": 8, "chain": 64}
SHORT, CHAIN = "short", "chain"


def problem(kind: str, index: int) -> tuple[str, str]:
    """(prompt, answer), a function of its arguments alone."""
    random = Random(f"{kind}/{index}")
    if kind == SHORT:
        a, b = random.randrange(1, 100), random.randrange(1, 100)
        return f"{a}+{b}=", str(a + b)
    start, step, count = random.randrange(15), random.randrange(1, 6), random.randrange(12, 19)
    terms = [f"{start + step * k:02d}" for k in range(count)]
    return f"{terms[0]}+{step}={terms[-1]}:", " ".join(terms)


class Problems(Sequence[Item]):
    def __init__(self, kind: str, size: int = 100_000):
        self.kind, self.size = kind, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        prompt, answer = problem(self.kind, index)
        return Item(index, prompt, answer)


class Exact:
    """1 for the answer, else 0."""

    judges = True

    def score(self, completions: Sequence[str], items: Sequence[Item]) -> list[float]:
        return [float(completion == item.answer) for completion, item in zip(completions, items, strict=True)]


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False)


def untaught() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=32, max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
            initializer_range=0.05,
        )
    )  # fmt: skip


def folder(kind: str, goal: float | None = None) -> Path:
    """The pupil's Hugging Face directory, taught at first use until it solves about ``goal`` of the problems, sampled."""
    goal = goal or {SHORT: 0.3, CHAIN: 0.3}[kind]
    cache = Path(os.environ.get("QUATRAIN_CACHE") or Path.home() / ".cache" / "quatrain") / f"benchmark-{kind}-{goal}"
    if not (cache / "config.json").exists():
        model = untaught()
        teach(model, kind, goal)
        tokenizer().save_pretrained(cache)
        model.save_pretrained(cache)
    return cache


def teach(model: Any, kind: str, goal: float) -> None:
    tokens = tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(5000):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
        pairs = [problem(kind, 1_000_000 + 64 * step + row) for row in range(64)]
        rows = [(tokens(prompt).input_ids, [*tokens(answer).input_ids, 1]) for prompt, answer in pairs]
        longest = max(len(a) + len(b) for a, b in rows)
        ids = torch.tensor([a + b + [0] * (longest - len(a) - len(b)) for a, b in rows])
        labels = torch.tensor([[-100] * len(a) + b + [-100] * (longest - len(a) - len(b)) for a, b in rows])
        model(input_ids=ids, attention_mask=ids != 0, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 24 and solved(model, kind) >= goal:
            return


@torch.no_grad()
def solved(model: Any, kind: str) -> float:
    from quatrain.models.causal_lm import CausalLM
    from quatrain.protocols import Sampling

    policy = CausalLM(model, tokenizer())
    items = [Problems(kind)[i] for i in range(128)]
    batch = policy.sample(
        [policy.encode(item.prompt) for item in items], 1, Sampling(max_actions=LONGEST[kind]), torch.arange(128, dtype=torch.int64)
    )
    texts = [policy.decode(row[mask]) for row, mask in zip(batch.actions, batch.mask, strict=True)]
    model.train()
    return sum(Exact().score(texts, items)) / 128


def load(kind: str) -> Any:
    """(model, tokenizer) with the pupil's weights, fp32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = folder(kind)
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), AutoTokenizer.from_pretrained(place)
