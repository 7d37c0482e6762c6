"""A causal language model as two halves: token ids → hidden states [N, L, D], hidden states [M, D] → logits [M, V].

The halves are the model's own modules, so nothing about an architecture is repeated here except the last scaling of
the logits, which is read from the configuration and checked once against the model's own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.errors import QuatrainError


@dataclass(frozen=True)
class Backbone:
    """The halves of a model.

    model    the Hugging Face causal LM (under any PEFT wrapper): for its configuration.
    decoder  module from ids to hidden states.
    head     module from hidden states to unscaled logits.
    scale    logits are multiplied by it (Cohere's ``logit_scale``, Granite's ``1/logits_scaling``).
    softcap  logits become ``c·tanh(z/c)`` (Gemma's ``final_logit_softcapping``), None for off.
    """

    model: Any
    decoder: nn.Module
    head: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        return self.head.weight.shape[0]

    @property
    def plain_head(self) -> bool:
        """Whether the head is a bare matrix product, whose gradient can be written out."""
        hooks = (self.head._forward_hooks, self.head._forward_pre_hooks, self.head._backward_hooks, self.head._backward_pre_hooks)
        return type(self.head) is nn.Linear and not any(hooks)

    def hidden(self, ids: Tensor) -> Tensor:
        """[N, L, D] for ids [N, L] whose padding, if any, is on the right: causal attention needs no mask then."""
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state

    def last_layers(self, ids: Tensor, count: int) -> Tensor:
        """[N, L, count·D] hidden states after each of the last ``count`` layers, for ids as ``hidden`` takes them.

        Raises QuatrainError if the model has fewer.
        """
        depth = self.model.config.get_text_config(decoder=True).num_hidden_layers
        stacks = [part for part in self.decoder.children() if isinstance(part, nn.ModuleList) and len(part) == depth]
        if not 1 <= count <= (depth if stacks else 1):
            raise QuatrainError("hidden states are of the last layers", given=count, expected=f"1 to {depth if stacks else 1} layers")
        # Not output_hidden_states: what transformers hooks up for it stays in the model, which then samples by another path.
        seen: list[Tensor] = []
        watched = stacks[0][depth - count : depth - 1] if count > 1 else ()
        hooks = [
            layer.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)) for layer in watched
        ]
        try:
            last = self.hidden(ids)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([*seen, last], -1)

    def finish(self, logits: Tensor) -> Tensor:
        """The logits [M, V] as the model returns them, from the head's output."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """[…, V] from hidden states […, D]."""
        return self.finish(self.head(hidden))


def split(module: nn.Module) -> Backbone:
    """The halves of a Hugging Face causal LM, or of one wrapped by PEFT.

    Raises QuatrainError for a model without a decoder and an output embedding, and for soft prompts.
    """
    model = module
    if hasattr(module, "peft_config"):
        if any(getattr(config, "is_prompt_learning", False) for config in module.peft_config.values()):
            raise QuatrainError(
                "soft prompts are not supported", given=type(module).__name__, expected="adapters inside the layers", fix="use LoRA"
            )
        model = module.get_base_model()
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    if head is None or decoder is None or decoder is model:
        raise QuatrainError(
            "this module is not a causal language model",
            given=type(model).__name__,
            expected="a Hugging Face model with a language-model head",
        )
    config = model.config.get_text_config(decoder=True)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Backbone(model, decoder, head, scale, getattr(config, "final_logit_softcapping", None))


def check(backbone: Backbone) -> None:
    """Raises QuatrainError unless the halves together give the logits of the model's own forward on a few tokens."""
    ids = torch.arange(4, device=backbone.head.weight.device)[None] % backbone.vocabulary
    training = backbone.model.training
    backbone.model.eval()
    with torch.no_grad():
        ours, own = backbone.logits(backbone.hidden(ids)).float(), backbone.model(input_ids=ids, use_cache=False).logits.float()
    backbone.model.train(training)
    gap, size = (ours - own).abs().max().item(), own.abs().max().item()
    if not gap <= 1e-3 * max(1.0, size):
        raise QuatrainError(
            f"{type(backbone.model).__name__} makes logits from hidden states in a way that is not known here",
            given=f"logits that differ by {gap:.3g}",
            expected="head(hidden), with logit_scale, logits_scaling or final_logit_softcapping from its configuration",
        )


def switch_off_dropout(module: nn.Module) -> None:
    """Sets every dropout probability to 0, so that training mode (needed by gradient checkpointing) computes what evaluation does."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if "dropout" in name and isinstance(value, float):
                setattr(part, name, 0.0)
