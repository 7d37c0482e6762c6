"""A masked-diffusion language model as a policy: all of an answer is in sight at once, and what is hidden is filled in.

Its likelihood is an evidence bound, a mean over mask draws, and a draw is data: the row value ``hidden`` [N, C] says which positions
of the canvas were hidden. Whoever scores the batch reads the same draw; to average over several, a trajectory stands in the batch
several times, each time with another one (``redraw``). So a draw is a row, has coefficients of its own, and any number of them fits in
the memory of one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.batch import Batch, Origin, spread
from quatrain.errors import QuatrainError
from quatrain.models import mask_draws
from quatrain.models.causal_lm import CausalLM, Messages
from quatrain.models.chunked import by_chunks
from quatrain.models.distributions import Categorical
from quatrain.models.draws import truncates
from quatrain.models.products import FastLinear, is_onednn
from quatrain.models.scorer import CHUNK_ELEMENTS
from quatrain.models.unmasking import Unmasking, unmask
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling, Statistic


@dataclass(frozen=True)
class Canvas:
    """A batch's answers as the model reads them, [N, C] each.

    tokens    the answer; after its end, the end again; after a cut, the mask.
    eligible  bool: positions that have a likelihood: actions, and what follows the end.
    owner     the action that a position belongs to: to end is to fill the rest of the canvas with the end.
    """

    tokens: Tensor
    eligible: Tensor
    owner: Tensor


class MaskedDiffusionLM:
    """A Hugging Face decoder read without its causal mask, with its tokenizer.

    module     the model: any that ``CausalLM`` takes. ``config.diffusion`` holds the fields of ``unmasking``, and tells a directory
               of such a model from one of a causal LM.
    tokenizer  with an end-of-sequence token and a mask token, whose probability is 0.
    unmasking  how it samples; its canvas is the longest answer.
    max_rows   rows sampled at the same time (None: all). chunk_elements, version  as for ``CausalLM``.

    ℓ of an action with draw S of k of the L positions is L/k·log p(y_i | y without S, x) where i is in S and 0 elsewhere, so that
    Σ_t ℓ_t is one draw's evidence bound (the whole row's, the end's repetitions included). Other statistics are weighed alike.
    Hidden positions are independent given the rest; the order in which a sampler fills them is no part of the likelihood.

    Raises QuatrainError for a tokenizer without a mask token, and what ``CausalLM`` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        unmasking: Unmasking | None = None,
        *,
        chat_template: bool | None = None,
        max_rows: int | None = None,
        chunk_elements: int = CHUNK_ELEMENTS,
    ):
        if tokenizer.mask_token_id is None:
            raise QuatrainError("the tokenizer has no mask token", given=type(tokenizer).__name__, fix="set tokenizer.mask_token")
        self._lm = CausalLM(model, tokenizer, chat_template=chat_template)
        self.module, self.tokenizer, self.backbone = model, tokenizer, self._lm.backbone
        config = self.backbone.model.config
        self.unmasking = unmasking or Unmasking(**(getattr(config, "diffusion", None) or {}))
        config.diffusion, config.is_causal = asdict(self.unmasking), False
        self.defaults: Mapping[str, float] = {}
        self.max_rows, self.chunk_elements, self.version = max_rows, chunk_elements, 0

    @property
    def device(self) -> torch.device:
        return self._lm.device

    # -- text ------------------------------------------------------------------------------------------------------
    def encode(self, prompt: str | Messages) -> list[int]:
        """Token ids of a prompt: see ``CausalLM.encode``."""
        return self._lm.encode(prompt)

    def encode_completion(self, text: str) -> list[int]:
        """Token ids of a completion, the end-of-sequence token included."""
        return self._lm.encode_completion(text)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of tokens, without special ones."""
        return self._lm.decode(tokens)

    # -- acting ----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], group: int, sampling: Sampling, seeds: Tensor) -> Batch:
        """``group`` completions of each tokenised prompt, rows ordered prompt by prompt; seeds [N] int64, one per row.

        Columns and rows as from ``CausalLM.sample``, and ``hidden``: one mask draw per row, under which behaviour_logp and old_logp are.
        An answer ends at its first end-of-sequence token, and is cut at ``max_actions`` or at the end of the canvas.

        Raises QuatrainError for top-k, top-p, stop texts and a heat, which an evidence bound does not know.
        """
        if truncates(sampling, self.backbone.vocabulary) or sampling.stop or sampling.heat is not None:
            raise QuatrainError(
                "a masked-diffusion model samples at a temperature, and ends at the end-of-sequence token",
                given=sampling,
                fix="leave top_k, top_p, stop texts and the heat alone",
            )
        self.module.eval()
        seeds = seeds.to(self.device)
        owners = [prompt for prompt in prompts for _ in range(group)]
        canvas = torch.cat([self._unmasked(owners[first:last], sampling, seeds[first:last]) for first, last in self._parts(len(owners))])
        end = self.tokenizer.eos_token_id
        place = torch.arange(canvas.shape[1], device=self.device)
        ends = torch.where(canvas == end, place, len(place)).amin(1)
        mask = place <= ends.clamp(max=sampling.max_actions - 1)[:, None]
        cut = ends >= min(sampling.max_actions, len(place))
        self._lm.version = self.version
        batch = self._lm._batch(owners, canvas.masked_fill(~mask, 0), mask, cut, Origin.POLICY, {}, {"seed": seeds}).trim()
        if sampling.temperature not in (0, 1):
            batch = batch.with_rows(temperature=torch.full((len(seeds),), float(sampling.temperature), device=self.device))
        batch = self._drawn(batch, 1, seeds)
        parts = [batch.take(torch.arange(first, last)) for first, last in self._parts(len(batch))]
        logp = torch.cat([self.score(part, [LogProb()])[LogProb()] for part in parts])
        return batch.with_columns(behaviour_logp=logp, old_logp=logp)

    def demonstrate(self, prompts: Sequence[Sequence[int]], completions: Sequence[str | Sequence[int]]) -> Batch:
        """Given completions as actions, each with a mask draw of its own: another one after every update of the weights.

        Raises QuatrainError for a completion that is longer than the canvas, and what ``CausalLM.demonstrate`` raises.
        """
        self._lm.version = self.version
        batch = self._lm.demonstrate(prompts, completions)
        if batch.shape[1] > self.unmasking.canvas:
            raise QuatrainError(
                "a completion is longer than the canvas", given=f"{batch.shape[1]} tokens", expected=f"at most {self.unmasking.canvas}"
            )
        texts = zip(prompts, batch.actions.tolist(), batch.lengths.tolist(), strict=True)
        seeds = [_hash((self.version, list(prompt), tokens[:length])) for prompt, tokens, length in texts]
        return self._drawn(batch, 1, torch.tensor(seeds, dtype=torch.int64))

    def redraw(self, batch: Batch, count: int, seed: int, whole: bool = False) -> Batch:
        """The batch with every row ``count`` times in succession, each with another mask draw (``mask_draws.stratified``).

        What was scored under the old draws, such as old_logp, is to be scored again.
        """
        return self._drawn(batch, count, seed + torch.arange(len(batch), device=batch.device), whole)

    def _drawn(self, batch: Batch, count: int, seeds: Tensor, whole: bool = False) -> Batch:
        hidden = mask_draws.stratified(self.laid_out(batch).eligible, count, seeds, whole).flatten(0, 1)
        repeated = batch if count == 1 else batch.take(torch.arange(len(batch)).repeat_interleave(count))
        return repeated.with_rows(hidden=hidden)

    def _unmasked(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Tensor) -> Tensor:
        context = self._lm._batch(prompts, *_nothing(len(prompts), self.device), Origin.POLICY, {}, {}).contexts["policy"]

        def logits(rows: Tensor, canvas: Tensor, span: slice) -> Tensor:
            hidden = self._hidden({name: value[rows] for name, value in context.items()}, canvas)
            return self._finished(self.backbone.head(hidden[:, span]))

        return unmask(logits, self.unmasking, sampling, seeds, self.tokenizer.mask_token_id, self.tokenizer.eos_token_id)

    def _parts(self, rows: int) -> list[tuple[int, int]]:
        step = self.max_rows or max(rows, 1)
        return [(first, min(first + step, rows)) for first in range(0, rows, step)]

    # -- scoring ---------------------------------------------------------------------------------------------------
    def score(
        self, batch: Batch, statistics: Sequence[Statistic], role: str = "policy", others: Mapping[str, MaskedDiffusionLM] | None = None
    ) -> dict[Statistic, Tensor]:
        """Each statistic at every action [N, T], at least fp32; 0 where it is not hidden and where ``batch.mask`` is False.

        The draw is the row value ``hidden``; without one, everything is hidden. ``temperature`` applies. ``others`` are read under the
        same draw without gradient, each in the context of its own name if the batch has one, else in ``role``.

        Raises QuatrainError for a missing context or model, and for answers that are longer than the canvas.
        """
        statistics, others = list(statistics), dict(others or {})
        needed = sorted({name for statistic in statistics for name in statistic.needs})
        if missing := set(needed) - set(others):
            raise QuatrainError("a statistic reads models that were not given", given=", ".join(others) or "none", expected=sorted(missing))
        view = self.laid_out(batch)
        hidden = view.eligible & batch["hidden"] if "hidden" in batch else view.eligible
        rows, places = hidden.nonzero(as_tuple=True)
        canvas = view.tokens.masked_fill(hidden, self.tokenizer.mask_token_id)

        def states(policy: MaskedDiffusionLM, seen: str) -> Tensor:
            if seen not in batch.contexts:
                raise QuatrainError(f"the batch has no context of role {seen!r}", given=", ".join(batch.contexts) or "none")
            return policy._hidden(batch.contexts[seen], canvas)[rows, places]

        own = states(self, role)
        with torch.no_grad():
            rest = {name: states(others[name], name if name in batch.contexts else role) for name in needed}
        owner = view.owner[rows, places]
        heat = spread(batch["temperature"], batch)[rows, owner].nan_to_num(1.0) if "temperature" in batch else None
        action = view.tokens[rows, places]

        def measure(logits: Tensor, part: Any) -> Tensor:
            heated = None if heat is None else heat[part]
            with torch.no_grad():
                wide = {
                    name: Categorical(others[name]._finished(others[name].backbone.head(value[part])), None, heated)
                    for name, value in rest.items()
                }
            mine = Categorical(self._finished(logits), None, heated)
            return torch.stack([statistic(mine, action[part], wide) for statistic in statistics])

        size = max(1, self.chunk_elements // self.backbone.vocabulary)
        values = by_chunks(measure, own, self.backbone.head, size, self.backbone.plain_head)
        values = values * mask_draws.weight(hidden, view.eligible)[rows].to(values.dtype)
        place = rows * batch.shape[1] + owner
        return {
            statistic: value.new_zeros(batch.mask.numel()).index_add(0, place, value).view(batch.shape)
            for statistic, value in zip(statistics, values, strict=True)
        }

    def laid_out(self, batch: Batch) -> Canvas:
        """The canvas of every row. Raises QuatrainError for answers that are longer than it."""
        width = self.unmasking.canvas
        there = batch.present | batch.mask
        length = torch.where(there, torch.arange(1, batch.shape[1] + 1, device=batch.device), 0).amax(1)
        if len(batch) and int(length.max()) > width:
            raise QuatrainError("an answer is longer than the canvas", given=int(length.max()), expected=f"at most {width} tokens")

        def fitted(value: Tensor) -> Tensor:
            return nn.functional.pad(value[:, :width], (0, max(0, width - value.shape[1])))

        place = torch.arange(width, device=batch.device)
        last = (length - 1).clamp(min=0)[:, None]
        tokens, acted = fitted(batch.actions.long()), fitted(batch.mask)
        end = self.tokenizer.eos_token_id
        ended = (tokens.gather(1, last) == end) & acted.gather(1, last)
        after = place > last
        tokens = torch.where(after & ended, end, torch.where(fitted(there), tokens, self.tokenizer.mask_token_id))
        return Canvas(tokens, acted | (after & ended), torch.minimum(place, last))

    def _hidden(self, context: Mapping[str, Tensor], canvas: Tensor) -> Tensor:
        """[N, C, D] hidden states of the canvas after the prompts of that context."""
        length = int(context["mask"].sum(1).max()) if len(canvas) else 0
        prompt, kept = context["tokens"][:, :length].long(), context["mask"][:, :length].bool()
        ids = torch.cat([prompt, canvas], 1)
        seen = torch.cat([kept, torch.ones_like(canvas, dtype=torch.bool)], 1)
        # A mask of four axes is taken as it is: every position sees all that is there, before and after it.
        attention = seen[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        with FastLinear() if is_onednn() and ids.device.type == "cpu" and not self.module.training else nullcontext():
            found = self.backbone.decoder(
                input_ids=ids, attention_mask=attention, position_ids=(seen.cumsum(1) - 1).clamp(min=0), use_cache=False
            ).last_hidden_state
        return found[:, length:]

    def _finished(self, logits: Tensor) -> Tensor:
        """Logits from the head's output, without the mask token."""
        finished = self.backbone.finish(logits)
        never = torch.arange(finished.shape[-1], device=finished.device) == self.tokenizer.mask_token_id
        return finished.masked_fill(never, -inf)

    # -- keeping ---------------------------------------------------------------------------------------------------
    def clone(self) -> MaskedDiffusionLM:
        """A frozen copy with its own weights, in evaluation mode."""
        module = copy.deepcopy(self.module).requires_grad_(False).eval()
        twin = MaskedDiffusionLM(
            module,
            self.tokenizer,
            self.unmasking,
            chat_template=self._lm.chat_template,
            max_rows=self.max_rows,
            chunk_elements=self.chunk_elements,
        )
        twin.version = self.version
        return twin

    def but(self, **changes: Any) -> MaskedDiffusionLM:
        """The same weights, sampled in another way: fields of ``Unmasking`` that differ."""
        twin = copy.copy(self)
        twin.unmasking = replace(self.unmasking, **changes)
        return twin

    def save(self, folder: str | Path) -> None:
        """A Hugging Face directory (safetensors, configuration, tokenizer). ``AutoModelForCausalLM`` loads it to the same logits where
        it is given an attention mask [N, 1, L, L]; ``config.diffusion`` says how to sample."""
        self._lm.save(folder)


def _nothing(rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [N, 1], mask [N, 1], cut [N]) of answers without actions."""
    empty = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    return empty.long(), empty, empty[:, 0]


def _hash(what: object) -> int:
    """63 bits that depend on nothing else."""
    return int.from_bytes(blake2b(repr(what).encode(), digest_size=8).digest(), "little") >> 1
