"""A small language model of fast weights: layers of DeltaNet in place of attention, as a Hugging Face causal LM.

A layer's memory is a matrix per head, of one size however long the text is. Short causal convolutions let a token's key be
made of the tokens just before it. Yang et al. 2024 (arXiv 2406.06484), in torch alone, without its kernels.

Importing this module makes its configuration known to ``AutoModelForCausalLM``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from quatrain.models.delta_rule import read_all


class DeltaNetConfig(PreTrainedConfig):
    """hidden_size, num_hidden_layers, num_attention_heads (of size hidden / heads), intermediate_size; conv_size: tokens that a
    convolution sees; initializer_range: standard deviation of the initial weights."""

    model_type = "quatrain_delta_net"
    attribute_map = {}  # noqa: RUF012 - the base class declares it so

    def __init__(
        self,
        vocab_size: int = 64,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 2,
        intermediate_size: int = 128,
        conv_size: int = 4,
        initializer_range: float = 0.05,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size, self.conv_size = num_attention_heads, intermediate_size, conv_size
        self.initializer_range, self.rms_norm_eps = initializer_range, 1e-6
        self.layer_types = ["linear_attention"] * num_hidden_layers  # what kind of cache each layer has
        super().__init__(tie_word_embeddings=tie_word_embeddings, **{k: v for k, v in kwargs.items() if k not in ("layer_types",)})


class DeltaLayer(nn.Module):
    """One mixer of tokens and one of features, each added to its input."""

    def __init__(self, config: DeltaNetConfig, index: int):
        super().__init__()
        size, self.index, self.heads, self.width = config.hidden_size, index, config.num_attention_heads, config.conv_size
        self.mixer_norm, self.mlp_norm = (nn.RMSNorm(size, eps=config.rms_norm_eps) for _ in range(2))
        self.qkv, self.rate = nn.Linear(size, 3 * size, bias=False), nn.Linear(size, self.heads)
        self.conv = nn.Conv1d(3 * size, 3 * size, self.width, groups=3 * size, bias=False)
        self.read_norm = nn.RMSNorm(size // self.heads, eps=config.rms_norm_eps)
        self.out = nn.Linear(size, size, bias=False)
        self.gate_up, self.down = (
            nn.Linear(size, 2 * config.intermediate_size, bias=False),
            nn.Linear(config.intermediate_size, size, bias=False),
        )

    def forward(self, x: Tensor, real: Tensor | None, cache: Any) -> Tensor:
        """[B, L, D] for x [B, L, D]; real [B, L] bool, None for all: what is padding is neither read nor written."""
        x = x + self.mix(self.mixer_norm(x), real, cache)
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def mix(self, x: Tensor, real: Tensor | None, cache: Any) -> Tensor:
        rows, length, size = x.shape
        joined, rate = self.qkv(x), self.rate(x).sigmoid()
        if real is not None:
            joined, rate = joined.masked_fill(~real[..., None], 0.0), rate.masked_fill(~real[..., None], 0.0)
        joined = joined.mT
        begun = cache is not None and cache.has_previous_state(self.index)
        if cache is None:
            seen = F.pad(joined, (self.width - 1, 0))
        else:
            seen = cache.update_conv_state(joined if begun else F.pad(joined, (self.width - 1, 0)), self.index)
            seen = seen[..., -(length + self.width - 1) :]
        query, key, value = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in F.silu(self.conv(seen)).mT.chunk(3, -1))
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)  # of length 1: a rate of 1 replaces what the key held
        before = cache.layers[self.index].recurrent_states[0] if begun else value.new_zeros(rows, self.heads, *[size // self.heads] * 2)
        found, after = read_all(query, key, value, rate.mT, before)
        if cache is not None:
            cache.update_recurrent_state(after, self.index)
        return self.out(self.read_norm(found).transpose(1, 2).reshape(rows, length, size))


class DeltaNetPreTrained(PreTrainedModel):
    config_class, base_model_prefix = DeltaNetConfig, "model"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d):  # all places alike: a key is made of the token before its value from the beginning
            nn.init.uniform_(module.weight, -(self.config.conv_size**-0.5), self.config.conv_size**-0.5)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)


class DeltaNetModel(DeltaNetPreTrained):
    def __init__(self, config: DeltaNetConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DeltaLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """``attention_mask`` [B, ≥ L] is False for padding on the left; of one that covers the past as well the end counts."""
        if use_cache and past_key_values is None:
            from quatrain.models.kv_cache import make_cache

            past_key_values, _ = make_cache(self.config)
        real = None if attention_mask is None else attention_mask[:, -input_ids.shape[1] :].bool()
        hidden = self.embed_tokens(input_ids)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, real, past_key_values)
            states.append(hidden)
        states[-1] = hidden = self.norm(hidden)
        shown = tuple(states) if output_hidden_states else None
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values, hidden_states=shown)


class DeltaNetForCausalLM(DeltaNetPreTrained, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DeltaNetConfig):
        super().__init__(config)
        self.model = DeltaNetModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_decoder(self) -> DeltaNetModel:
        return self.model

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, **kwargs: Any) -> CausalLMOutputWithPast:
        found = self.model(input_ids, **kwargs)
        logits = self.lm_head(found.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values, hidden_states=found.hidden_states)


AutoConfig.register(DeltaNetConfig.model_type, DeltaNetConfig, exist_ok=True)
AutoModelForCausalLM.register(DeltaNetConfig, DeltaNetForCausalLM, exist_ok=True)
