"""One decoding step of small Llama-shaped models in few large operations.

For a model of a few million parameters a step through Hugging Face's modules is mostly overhead: some two hundred small
operations. Here projections are joined, the scales of the norms folded into the matrices that follow them, and the
rotary tables made once per call. Used only where ``fits`` says so and only after its hidden states have been compared
with the model's own; every other model goes through its own forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from quatrain.models.backbone import Backbone
from quatrain.models.products import product

LARGEST = 50_000_000  # parameters: beyond, joined copies of the matrices cost more than the overhead they save
_SHAPES = {"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"}
_verified: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Layer:
    qkv: Tensor  # [(Hq + 2·Hk)·D, hidden], input norm folded in
    qkv_bias: Tensor | None
    head_scale: Tensor | None  # [Hq + Hk, D]: weights of the query and key norms (Qwen3)
    head_eps: float
    out: Tensor  # [hidden, Hq·D]
    gate_up: Tensor  # [2·F, hidden], norm folded in
    down: Tensor  # [hidden, F]
    eps: tuple[float, float]
    activation: Any
    scaling: float


class FastDecoder:
    """The weights as they are now (a copy), and rotary tables for ``positions`` positions."""

    def __init__(self, backbone: Backbone, positions: int):
        decoder = backbone.decoder
        self.embedding, self.norm = decoder.embed_tokens, decoder.norm
        attention = decoder.layers[0].self_attn
        self.size = attention.head_dim
        self.queries, self.keys = attention.q_proj.out_features // self.size, attention.k_proj.out_features // self.size
        self.layers = [self._layer(layer) for layer in decoder.layers]
        self.backbone, self.positions = backbone, 0
        self.reach(positions)

    def reach(self, positions: int) -> None:
        """Make the rotary tables long enough for that many positions."""
        if positions <= self.positions:
            return
        self.positions = positions
        place = torch.arange(positions, device=self.embedding.weight.device)[None]
        cos, sin = self.backbone.decoder.rotary_emb(self.embedding.weight[:1, None], place)
        half = self.size // 2
        # rotate_half(x)·sin is x with its halves swapped, times sin with its first half negated.
        self.cos, self.sin = cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], -1)

    def _layer(self, layer: nn.Module) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        scale, eps = None, 0.0
        if hasattr(attention, "q_norm"):
            eps = attention.q_norm.variance_epsilon
            scale = torch.cat([attention.q_norm.weight.expand(self.queries, -1), attention.k_norm.weight.expand(self.keys, -1)])
        return _Layer(
            qkv=torch.cat([part.weight for part in parts]) * before.weight,
            qkv_bias=None if parts[0].bias is None else torch.cat([part.bias for part in parts]),
            head_scale=scale,
            head_eps=eps,
            out=attention.o_proj.weight,
            gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * after.weight,
            down=mlp.down_proj.weight,
            eps=(before.variance_epsilon, after.variance_epsilon),
            activation=mlp.act_fn,
            scaling=attention.scaling,
        )

    def step(self, token: Tensor, position: Tensor, cache: Any, mask: Tensor | None) -> Tensor:
        """[B, hidden] after one more token [B] at position [B]; mask [B, 1, 1, L + 1] additive or None."""
        rows, width = len(token), self.queries + self.keys
        x = self.embedding.weight[token]
        cos, sin = self.cos[position], self.sin[position]
        for index, layer in enumerate(self.layers):
            qkv = product(_rms(x, layer.eps[0]), layer.qkv)
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias
            qkv = qkv.view(rows, -1, self.size)
            qk = qkv[:, :width]
            if layer.head_scale is not None:
                qk = _rms(qk, layer.head_eps) * layer.head_scale
            swapped = qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
            qk = torch.addcmul(qk * cos, swapped, sin)
            key, value = cache.layers[index].update(qk[:, self.queries :, None], qkv[:, width:, None])
            # Query heads that share a key head become its queries.
            query = qk[:, : self.queries].view(rows, self.keys, -1, self.size)
            # One query per row: two batched products take half the time of the kernel that is made for long queries.
            weight = query.mul(layer.scaling) @ key.mT
            seen = (weight if mask is None else weight.add_(mask)).softmax(-1) @ value
            x = x + product(seen.reshape(rows, -1), layer.out)
            gate, up = product(_rms(x, layer.eps[1]), layer.gate_up).chunk(2, -1)
            x = x + product(layer.activation(gate) * up, layer.down)
        return _rms(x, self.norm.variance_epsilon) * self.norm.weight


def _rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) over the last axis; one pass over x for the norm and one for the product."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * (norm.square_().div_(x.shape[-1]).add_(eps)).rsqrt_()


def fits(backbone: Backbone) -> bool:
    """Whether the fast step computes this model: shape and size, plain modules without hooks, and equal hidden states."""
    decoder = backbone.decoder
    if type(decoder).__name__ not in _SHAPES or not type(decoder).__module__.startswith("transformers."):
        return False
    if sum(parameter.numel() for parameter in decoder.parameters()) > LARGEST or backbone.head.weight.dtype not in (
        torch.float32,
        torch.float64,
    ):
        return False
    for module in decoder.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return False
    linear = [getattr(part, name) for layer in decoder.layers for part, names in _linear(layer) for name in names]
    if any(type(module) is not nn.Linear for module in linear):
        return False
    if any(layer.self_attn.o_proj.bias is not None or layer.mlp.gate_proj.bias is not None for layer in decoder.layers):
        return False
    if decoder not in _verified:
        _verified[decoder] = _equal(backbone)
    return _verified[decoder]


def _linear(layer: nn.Module) -> tuple[tuple[nn.Module, tuple[str, ...]], ...]:
    return (layer.self_attn, ("q_proj", "k_proj", "v_proj", "o_proj")), (layer.mlp, ("gate_proj", "up_proj", "down_proj"))


def _equal(backbone: Backbone) -> bool:
    """Two steps after a prompt of three tokens, beside the model's own forward on all five."""
    from quatrain.models.kv_cache import make_cache

    ids = torch.arange(5, device=backbone.head.weight.device)[None] % backbone.vocabulary
    cache, plain = make_cache(backbone.model.config)
    with torch.no_grad():
        expected = backbone.hidden(ids)[0, 3:]
        backbone.decoder(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
        if not plain:
            return False
        fast = FastDecoder(backbone, 5)
        ours = torch.cat([fast.step(ids[:, i], torch.tensor([i], device=ids.device), cache, None) for i in (3, 4)])
    return bool((ours - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1.0))
