"""The embedded default: a tiny language model that anyone can train in a minute, with nothing downloaded.

Qwen3-shaped, about 210 thousand parameters, with a character tokenizer. It is built and warm-started on the letters
laboratory at first use and kept in a cache folder.
"""

from __future__ import annotations

from typing import Any

from quatrain.errors import QuatrainError, nearest

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz \n+-*/=()<>,.:;?!'\"%#@$"
PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHAT = (  # contents alone; a line break between two messages unless the second one is the answer to the first
    "{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last and loop.nextitem['role'] != 'assistant' %}{{ '\n' }}{% endif %}{% endfor %}"
)

SHARES = {"chain": 8, "sort": 5, "reverse": 6, "countdown": 4, "shift": 1, "add": 1, "scratch": 1, "count": 1}
SLIPS = {"chain": 0.64, "sort": 0.64, "reverse": 0.64, "countdown": 0.35, "add": 0.6, "scratch": 0.6, "count": 0.6}
DEFAULTS = {"lr": 5e-4, "prompts": 16, "max_actions": 32}  # knobs that suit a model and answers of this size
LESSONS: dict[str, dict[str, Any]] = {
    "base": {"shares": SHARES, "slips": SLIPS, "unseen": ("shift",), "proper": 0.7, "examples": 52_000},
    "strong": {"shares": {**SHARES, "shift": 3}, "examples": 64_000},  # a teacher: properly taught, every kind
    "privileged": {"shares": {"worked": 1}, "slips": {"worked": 0.64}, "told": 0.5, "proper": 0.5, "examples": 20_000},  # reads a solution
    "long": {"shares": {"long": 1}, "slips": {"long": 0.5}, "proper": 0.7, "examples": 16_000},  # answers of up to 38 characters
    "modes": {"shares": {"modes": 1}, "slips": {"modes": 0.3}, "proper": 0.5, "examples": 36_000, "mingled": True},  # opens either way
}


def tiny(name: str = "base", *, show: bool = True, **changes: Any) -> Any:
    """The embedded model as a CausalLM: ``base``; ``strong``, a teacher that was taught longer and without mistakes; ``privileged``,
    which makes the mistakes of ``base`` on one kind, but not where it is told the solution; ``long``, for letters:long; ``modes``,
    which answers letters:modes in either of its two ways, about as often.

    name     one of these, with or without the prefix of model=tiny, model=tiny:strong.

    show     a progress bar while it is built for the first time (under a minute on two cores).
    changes  fields of ``warm_start.Lesson`` that differ: another model, with a place of its own in the cache.

    Raises QuatrainError for an unknown name or field.
    """
    from quatrain.tasks.taught import completions, lesson_of, on_rows, taught
    from quatrain.tasks.warm_start import Lesson, corpus

    name = name.removeprefix("tiny").removeprefix(":") or "base"
    if name not in LESSONS:
        raise QuatrainError("no such embedded model", given=f"tiny:{name}", fix=nearest(name, LESSONS))
    lesson = lesson_of(Lesson, LESSONS[name], changes)
    build = on_rows(lambda lesson, tokens: completions(corpus(lesson), tokens), ordered=not lesson.mingled)
    return taught(lesson, build, name=f"tiny:{name}", defaults=DEFAULTS, show=show)


def tokenizer(more: str = "") -> Any:
    """A Hugging Face fast tokenizer, one token per character, 61 characters and ``more``, and 3 special tokens; pad is not eos.

    Upper-case letters are read as lower-case ones, other characters as <unk>. The chat template writes the messages'
    contents, so that a chat of one question is that question.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: place for place, token in enumerate([PAD, END, UNKNOWN, *CHARACTERS, *more])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False, model_max_length=512
    )
    fast.chat_template = CHAT
    return fast


def untrained(lesson: Any, tokens: Any) -> Any:
    """The Qwen3-shaped model with the lesson's shape and initial weights; the global random state is left as it was."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokens),
        hidden_size=lesson.hidden,
        intermediate_size=lesson.inner,
        num_hidden_layers=lesson.layers,
        num_attention_heads=lesson.heads,
        num_key_value_heads=lesson.groups,
        head_dim=lesson.hidden // lesson.heads,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # positions within a line, not within a book
        tie_word_embeddings=True,
        pad_token_id=tokens.pad_token_id,
        eos_token_id=tokens.eos_token_id,
        bos_token_id=None,
        attention_dropout=0.0,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.seed)
        return Qwen3ForCausalLM(config)
