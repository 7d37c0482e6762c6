"""The fast decoding step equals the model's own, and is used only where it does."""

from __future__ import annotations

import pytest
import torch

from quatrain.models import fast_decode
from quatrain.models.backbone import split
from quatrain.models.fast_decode import FastDecoder, fits
from quatrain.models.loading import LoraSettings, add_lora
from quatrain.models.sampler import Stops, sample
from quatrain.protocols import Sampling
from tests.tiny_models import tiny_model

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]


def shaped(kind: str, dtype: torch.dtype = torch.float64):
    """Models of every kind that fits, with norms, biases and rotary scaling that are not trivial."""
    import transformers

    if kind in ("qwen3", "llama"):
        rope = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}} if kind == "llama" else {}
        model = tiny_model(kind, dtype=dtype, **rope)
    else:
        config = {"qwen2": transformers.Qwen2Config, "mistral": transformers.MistralConfig}[kind]
        window = {"sliding_window": None} if kind == "mistral" else {}
        shape = {"vocab_size": 51, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        model = transformers.AutoModelForCausalLM.from_config(config(**shape, intermediate_size=64, **tokens, **window)).to(dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=dtype) / 3)
    return model


@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "mistral"])
def test_equals_the_models_own_step(kind: str, monkeypatch) -> None:
    model = shaped(kind)
    backbone, options = split(model), Sampling(max_actions=20)
    assert fits(backbone)
    fast = sample(backbone, PROMPTS, 4, options, torch.arange(12), Stops((1, 2, 3, 4, 5)))
    monkeypatch.setattr("quatrain.models.living.fits", lambda backbone: False)
    own = sample(backbone, PROMPTS, 4, options, torch.arange(12), Stops((1, 2, 3, 4, 5)))
    assert torch.equal(fast.tokens, own.tokens) and torch.equal(fast.mask, own.mask)
    torch.testing.assert_close(fast.logp, own.logp, rtol=0, atol=1e-6)


def test_reads_the_weights_as_they_are_now() -> None:
    model = shaped("qwen3")
    before = sample(split(model), PROMPTS, 1, Sampling(max_actions=5), torch.arange(3), Stops(()))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-3)
    after = sample(split(model), PROMPTS, 1, Sampling(max_actions=5), torch.arange(3), Stops(()))
    ids = torch.cat([torch.tensor(PROMPTS[0]), after.tokens[0]])[None]
    expected = model(ids).logits[0, 3:-1].log_softmax(-1).gather(-1, after.tokens[0][:, None])[:, 0]
    torch.testing.assert_close(after.logp[0].double(), expected, rtol=0, atol=1e-6)
    assert (before.logp - after.logp).abs().max() > 1e-3


def test_is_not_used_where_it_does_not_fit(monkeypatch) -> None:
    assert not fits(split(tiny_model("gpt2")))
    assert not fits(split(tiny_model("qwen3", dtype=torch.bfloat16)))
    assert not fits(split(add_lora(tiny_model("qwen3"), LoraSettings(rank=1))))
    hooked = tiny_model("llama")
    assert fits(split(hooked))
    handle = hooked.model.layers[0].register_forward_hook(lambda module, args, output: output)
    assert not fits(split(hooked))
    handle.remove()
    assert fits(split(hooked))
    monkeypatch.setattr(fast_decode, "LARGEST", 10)
    assert not fits(split(hooked))


def test_a_step_that_differs_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(FastDecoder, "step", lambda self, token, position, cache, mask: torch.zeros(len(token), 32))
    assert not fits(split(tiny_model("llama")))
