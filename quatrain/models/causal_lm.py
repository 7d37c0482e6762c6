"""A causal language model as a policy: tokens are actions, the prompt is the state it begins in."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError
from quatrain.models import backbone as halves
from quatrain.models import prefix_tree
from quatrain.models.decoding import Decoding, Samples, Stops
from quatrain.models.features import hidden_features
from quatrain.models.last_layer import LastLayer
from quatrain.models.sampler import sample
from quatrain.models.scorer import CHUNK_ELEMENTS, hidden_at_actions, last_layer, score
from quatrain.protocols import Sampling, Statistic

Messages = Sequence[Mapping[str, str]]


class CausalLM:
    """A Hugging Face causal LM, bare or wrapped by PEFT adapters, with its tokenizer.

    module          the model: what is trained and saved. Dropout is switched off for good (ratios are then 1 before the first update).
    tokenizer       a Hugging Face tokenizer with an end-of-sequence token.
    chat_template   None: for chat messages only; True: for plain prompts too, as one user message; False: never.
    max_rows        rows sampled at the same time (None: all), which bounds the memory of keys and values.
    chunk_elements  logits held at once when scoring.
    version         number of updates of the weights, set by the training loop.

    Raises QuatrainError for a module that is no causal LM, and for a tokenizer without an end-of-sequence token or
    with more tokens than the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        chat_template: bool | None = None,
        max_rows: int | None = None,
        chunk_elements: int = CHUNK_ELEMENTS,
    ):
        if tokenizer.eos_token_id is None:
            raise QuatrainError("the tokenizer has no end-of-sequence token", given=type(tokenizer).__name__, fix="set tokenizer.eos_token")
        self.module, self.tokenizer, self.chat_template = model, tokenizer, chat_template
        self.defaults: Mapping[str, float] = {}  # knobs that suit this model, where a run does not set them
        self.max_rows, self.chunk_elements, self.version = max_rows, chunk_elements, 0
        self.backbone = halves.split(model)
        if tokenizer.vocab_size > self.backbone.vocabulary or tokenizer.eos_token_id >= self.backbone.vocabulary:
            raise QuatrainError(
                "the tokenizer does not belong to the model",
                given=f"{tokenizer.vocab_size} tokens, eos {tokenizer.eos_token_id}; the model has {self.backbone.vocabulary}",
                fix="load both from one directory, or resize the model's embeddings",
            )
        halves.check(self.backbone)
        halves.switch_off_dropout(model)
        self._stops: dict[tuple[str, ...], Stops] = {}

    @property
    def device(self) -> torch.device:
        return self.backbone.head.weight.device

    @property
    def shares_prefixes(self) -> bool:
        """Whether samples of one prompt that are scored together cost less than alone (``prefix_tree``)."""
        return prefix_tree.fits(self.backbone)

    # -- text ------------------------------------------------------------------------------------------------------
    def encode(self, prompt: str | Messages) -> list[int]:
        """Token ids of a prompt: a text as the tokenizer takes it, chat messages through the model's chat template.

        Raises QuatrainError for messages without a template and for a prompt that has no token.
        """
        if isinstance(prompt, str) and self.chat_template:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt).input_ids)
            if ids and ids[-1] == self.tokenizer.eos_token_id and not prompt.endswith(self.tokenizer.eos_token):
                ids.pop()  # some tokenizers end every text; a prompt goes on
        else:
            if self.chat_template is False or not self.tokenizer.chat_template:
                raise QuatrainError(
                    "chat messages need a chat template, and there is none",
                    given="chat_template=False"
                    if self.tokenizer.chat_template
                    else f"{type(self.tokenizer).__name__} without chat_template",
                    expected="a tokenizer whose chat_template says how messages become one text",
                    fix="use an instruction-tuned model, set tokenizer.chat_template, or give prompts as plain texts",
                )
            messages = [dict(message) for message in prompt]
            ids = list(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        if not ids:
            raise QuatrainError("a prompt has no token", given=repr(prompt), expected="a text of at least one token")
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a completion, the end-of-sequence token included."""
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        return [*ids, self.tokenizer.eos_token_id]

    def encode_reply(self, text: str, chat: bool = False) -> list[int]:
        """Token ids of what another says after a turn of this policy's: what stands between two of its turns.

        chat  as a user's message, with what the chat template writes from the end-of-sequence token of the policy's turn to where
              it is its turn again. Text before that token is never encoded again. False: the text alone.
        """
        if chat:
            mark = "\u2045turn\u2046"
            talk = [("user", mark), ("assistant", mark), ("user", text)]
            messages = [{"role": role, "content": content} for role, content in talk]
            written = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            text = written.rpartition(mark)[2].removeprefix(self.tokenizer.eos_token)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of tokens, without special ones."""
        tokens = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    # -- acting ----------------------------------------------------------------------------------------------------
    def sample(self, prompts: Sequence[Sequence[int]], group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        """``group`` completions of each tokenised prompt, rows ordered prompt by prompt; seeds [N] int64, one per row.

        Columns: behaviour_logp and old_logp (one tensor: the log-probability under the distribution sampled from),
        version, origin, terminated, truncated, and support where top-k or top-p is on; rows: seed, and temperature
        where it is not 1 (a column where sampling has a heat).
        At temperature 0 the log-probability is that at temperature 1 (see ``draws.draw``).
        """
        self.module.eval()
        samples = sample(
            self.backbone,
            prompts,
            group,
            sampling,
            seeds,
            self._stops_for(sampling.stop),
            pad=self.tokenizer.eos_token_id,  # any id does: it is masked
            max_rows=self.max_rows,
            version=self.version,
        )
        return self.sampled([prompt for prompt in prompts for _ in range(group)], samples, sampling, seeds)

    def decoding(self, sampling: Sampling) -> Decoding:
        """Sampling that its caller interrupts, continues and branches; ``sampled`` makes a batch of what is taken from it."""
        self.module.eval()
        return Decoding(
            self.backbone,
            sampling,
            self._stops_for(sampling.stop),
            pad=self.tokenizer.eos_token_id,
            room=self.max_rows,
            version=self.version,
        )

    def sampled(self, prompts: Sequence[Sequence[int]], samples: Samples, sampling: Sampling, seeds: Tensor) -> Batch:
        """The batch of N samples, one of each of these N tokenised prompts; its columns are those of ``sample``."""
        columns = {"behaviour_logp": samples.logp, "old_logp": samples.logp, "version": samples.version}
        if samples.support is not None:
            columns["support"] = samples.support
        rows = {"seed": seeds.to(self.device)}
        if samples.temperature is not None:
            columns["temperature"] = samples.temperature
        elif sampling.temperature not in (0, 1):
            rows["temperature"] = torch.full((len(seeds),), float(sampling.temperature), device=self.device)
        return self._batch(prompts, samples.tokens, samples.mask, samples.truncated, Origin.POLICY, columns, rows)

    def demonstrate(self, prompts: Sequence[Sequence[int]], completions: Sequence[str | Sequence[int]]) -> Batch:
        """Given completions as actions, one per tokenised prompt; a text is tokenised and ended, token ids are taken as they are.

        Raises QuatrainError for counts that differ and for a completion without tokens.
        """
        if len(prompts) != len(completions):
            raise QuatrainError("one completion per prompt", given=f"{len(prompts)} prompts, {len(completions)} completions")
        rows = [self.encode_completion(completion) if isinstance(completion, str) else list(completion) for completion in completions]
        if not all(rows):
            raise QuatrainError("a completion has no token", given=f"completion {[bool(row) for row in rows].index(False)}")
        tokens, mask = _padded(rows, self.device)
        cut = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        return self._batch(prompts, tokens, mask, cut, Origin.DEMONSTRATION, {}, {})

    def _batch(
        self, prompts: Sequence[Sequence[int]], tokens: Tensor, mask: Tensor, cut: Tensor, origin: int, columns: dict, rows: dict
    ) -> Batch:
        context, context_mask = _padded(prompts, self.device)
        last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
        columns = {
            "version": torch.full_like(tokens, self.version).masked_fill(~mask, 0),
            **columns,
            "origin": torch.full_like(tokens, origin).masked_fill(~mask, 0),
            "terminated": last & ~cut[:, None],
            "truncated": last & cut[:, None],
        }
        return Batch(mask, tokens, columns, rows, {"policy": {"tokens": context, "mask": context_mask}})

    def _stops_for(self, texts: tuple[str, ...]) -> Stops:
        """What ends a completion; the table of tokens after which a stop text can be complete is made once per set of texts."""
        if texts not in self._stops:
            configured = getattr(self.backbone.model.generation_config, "eos_token_id", None)
            configured = configured if isinstance(configured, list | tuple) else [configured]
            eos = {self.tokenizer.eos_token_id, *(token for token in configured if token is not None)}
            self._stops[texts] = Stops(tuple(sorted(eos)), texts, self.tokenizer.decode, self._could_end(texts) if texts else None)
        stops = self._stops[texts]
        return stops if not texts else replace(stops, could_end=stops.could_end.to(self.device))

    def _could_end(self, texts: tuple[str, ...]) -> Tensor:
        """[V] bool: the token holds the last character of a stop text, or cannot be read alone (part of a character, white space)."""
        if not all(texts):
            raise QuatrainError("a stop text is empty", given=texts, expected="texts of at least one character")
        ends = {text[-1] for text in texts}
        size = len(self.tokenizer)
        could = torch.ones(max(size, self.backbone.vocabulary), dtype=torch.bool)
        if not any(end.isspace() for end in ends):  # decoding one token may strip white space
            alone = self.tokenizer.batch_decode([[token] for token in range(size)])
            could[:size] = torch.tensor(["\ufffd" in text or not ends.isdisjoint(text) for text in alone])
        return could

    # -- scoring ---------------------------------------------------------------------------------------------------
    def score(
        self, batch: Batch, statistics: Sequence[Statistic], role: str = "policy", others: Mapping[str, CausalLM] | None = None
    ) -> dict[Statistic, Tensor]:
        """Each statistic at every action [N, T], 0 where the mask is False: see ``scorer.score``."""
        for policy in (self, *(others or {}).values()):
            policy._ready()
        return score(
            self.backbone, batch, statistics, role, {name: other.backbone for name, other in (others or {}).items()}, self.chunk_elements
        )

    @torch.no_grad()
    def features(self, batch: Batch, role: str = "policy", layers: int = 1) -> Tensor:
        """[N, 2·layers·D] hidden states at the prompt's end and pooled over the actions: see ``features.hidden_features``."""
        self._ready()
        return hidden_features(self.backbone, batch, role, layers)

    def last_layer(self, batch: Batch) -> LastLayer:
        """The head and its inputs at the actions; see ``scorer.last_layer``."""
        self._ready()
        return last_layer(self.backbone, batch, chunk_elements=self.chunk_elements)

    @torch.no_grad()
    def action_states(self, batch: Batch, role: str = "policy") -> Tensor:
        """[N, T, D] hidden states of the last layer after each action, 0 where the mask is False; no gradient."""
        self._ready()
        hidden = hidden_at_actions(self.backbone, batch, role, after=1)
        return hidden.new_zeros(*batch.shape, hidden.shape[-1]).index_put_(batch.mask.nonzero(as_tuple=True), hidden)

    def _ready(self) -> None:
        """Evaluation mode, except that Hugging Face checkpoints gradients in training mode only (dropout is off in both)."""
        model = self.backbone.model
        name = "is_activation_checkpointing" if hasattr(type(model), "is_activation_checkpointing") else "is_gradient_checkpointing"
        wanted = bool(getattr(model, name, False)) and torch.is_grad_enabled()
        if self.module.training != wanted:
            self.module.train(wanted)

    # -- keeping ---------------------------------------------------------------------------------------------------
    def clone(self) -> CausalLM:
        """A frozen copy with its own weights, in evaluation mode."""
        module = copy.deepcopy(self.module).requires_grad_(False).eval()
        twin = CausalLM(
            module, self.tokenizer, chat_template=self.chat_template, max_rows=self.max_rows, chunk_elements=self.chunk_elements
        )
        twin.version = self.version
        return twin

    def save(self, folder: str | Path) -> None:
        """A Hugging Face directory (safetensors, configuration, tokenizer) that ``AutoModelForCausalLM`` loads to the same logits.

        Adapters are merged into a copy of the model, and also saved as they are in ``adapter/``.
        """
        folder = Path(folder)
        model = self.module
        if model is not self.backbone.model:
            self.module.save_pretrained(folder / "adapter")
            model = copy.deepcopy(self.module).merge_and_unload()
        with quiet():
            model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars of transformers, which would write over those of the terminal view."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token lists as ([N, L] int64 padded on the right with zeros, [N, L] bool)."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(longest, device=device) < lengths[:, None]
