"""The embedded default: a tiny language model that anyone can train in a minute, with nothing downloaded.

Qwen3-shaped, about 210 thousand parameters, with a character tokenizer. It is built and warm-started on the letters
laboratory at first use and kept in a cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quatrain.errors import QuatrainError, nearest

CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz \n+-*/=()<>,.:;?!'\"%#@$"
FORMAT = 1  # of what is cached; part of its key
YOUNGER = ("told", "mingled", "prior", "habit")  # fields of a lesson that the key has only where they are on
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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quatrain.models.causal_lm import CausalLM, quiet
    from quatrain.tasks.warm_start import Lesson

    name = name.removeprefix("tiny").removeprefix(":") or "base"
    if name not in LESSONS:
        raise QuatrainError("no such embedded model", given=f"tiny:{name}", fix=nearest(name, LESSONS))
    known = {part.name for part in dataclasses.fields(Lesson)}
    if unknown := sorted(set(changes) - known):
        raise QuatrainError(f"a lesson has no field {unknown[0]!r}", fix=nearest(unknown[0], known))
    folder = cached(Lesson(**{**LESSONS[name], **changes}), show=show, name=f"tiny:{name}")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    policy = CausalLM(model, AutoTokenizer.from_pretrained(folder))
    policy.defaults = DEFAULTS
    return policy


def cache_folder() -> Path:
    """Where embedded models are kept: QUATRAIN_CACHE, else ~/.cache/quatrain."""
    return Path(os.environ.get("QUATRAIN_CACHE") or Path.home() / ".cache" / "quatrain").expanduser()


def cached(lesson: Any, show: bool = False, name: str = "the embedded model", build: Callable[..., None] | None = None) -> Path:
    """The directory of the lesson's model, built at first use. It appears whole or not at all: two processes may build at once.

    build  ``(lesson, folder, report)``: makes the model and writes its directory; None: a causal one.

    Raises QuatrainError if the cache folder cannot be written.
    """
    what = {name: value for name, value in dataclasses.asdict(lesson).items() if name not in YOUNGER or value}
    key = hashlib.sha256(json.dumps([FORMAT, what], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / f"tiny-{key}"
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    except OSError as error:
        raise QuatrainError(
            "the folder of embedded models cannot be written", given=f"{folder.parent}: {error}", fix="set QUATRAIN_CACHE"
        ) from error
    try:
        with one_thread(), _progress(show, f"building {name}, once") as report:
            (build or _build)(lesson, draft, report)
        draft.chmod(0o755)
        try:
            os.replace(draft, folder)
        except OSError:
            if not (folder / "config.json").exists():  # else another process was first, with the same result
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _build(lesson: Any, folder: Path, report: Callable[[float, float], None]) -> None:
    from quatrain.models.causal_lm import quiet
    from quatrain.tasks.warm_start import teach

    tokens = tokenizer()
    model = untrained(lesson, tokens)
    vocabulary = tokens.get_vocab()
    teach(model, lesson, lambda text: [vocabulary[character] for character in text], tokens.eos_token_id, tokens.pad_token_id, report)
    with quiet():
        model.save_pretrained(folder)
    tokens.save_pretrained(folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices of this size are too small to share out: a second thread mostly waits, and on a busy machine it waits long."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _progress(show: bool, title: str) -> Iterator[Callable[[float, float], None]]:
    """A function of (fraction done, loss) that draws a progress bar on standard error, or nothing."""
    if not show:
        yield lambda done, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.2f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task(title, total=1.0, loss=float("nan"))

        def report(done: float, loss: float) -> None:
            bar.update(work, completed=done, loss=loss)

        yield report


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
