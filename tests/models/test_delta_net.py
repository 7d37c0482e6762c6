"""Fast weights: the rule is a gradient step, all tokens at once are one after the other, and the model samples, scores and is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from quatrain.batch import Batch
from quatrain.models.causal_lm import CausalLM
from quatrain.models.delta_net import DeltaNetConfig, DeltaNetForCausalLM
from quatrain.models.delta_rule import read_all, write
from quatrain.models.kv_cache import make_cache
from quatrain.models.loading import load_causal_lm
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.tasks.embedded import tokenizer


def delta_policy(seed: int = 0) -> CausalLM:
    tokens = tokenizer()
    config = DeltaNetConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=24, pad_token_id=0, eos_token_id=1, initializer_range=0.4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalLM(DeltaNetForCausalLM(config), tokens)


def inputs(length: int = 150) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, length, 5, generator=g, dtype=torch.float64) for _ in range(3))
    rate = torch.rand(2, 3, length, generator=g, dtype=torch.float64)
    return query, torch.nn.functional.normalize(key, dim=-1), value, rate, torch.randn(2, 3, 5, 5, generator=g, dtype=torch.float64)


def test_a_writing_is_one_gradient_step():
    _, key, value, rate, weights = (part[0, 0] for part in inputs(1))
    weights.requires_grad_()
    (slope,) = torch.autograd.grad(0.5 * (weights @ key[0] - value[0]).square().sum(), weights)
    found = write(weights.detach(), key[0], value[0], rate[0])
    torch.testing.assert_close(found, weights.detach() - rate[0] * slope)
    torch.testing.assert_close(write(weights.detach(), key[0], value[0], torch.tensor(1.0)) @ key[0], value[0])  # rate 1: learnt at once


def test_all_tokens_at_once_are_one_after_the_other():
    """Across chunks, from any weights; a token of rate 0 changes nothing."""
    query, key, value, rate, weights = inputs()
    rate[:, :, 40:50] = 0
    found, after = read_all(query, key, value, rate, weights)
    for t in range(query.shape[2]):
        weights = write(weights, key[:, :, t], value[:, :, t], rate[:, :, t])
        torch.testing.assert_close(found[:, :, t], (weights @ query[:, :, t, :, None])[..., 0])
    torch.testing.assert_close(after, weights)


def test_its_gradient():
    small = tuple(
        part[:1, :1, :3].clone().requires_grad_() if part.shape[2] != 5 else part[:1, :1].clone().requires_grad_() for part in inputs(9)
    )
    assert torch.autograd.gradcheck(read_all, small)


def test_sampling_scores_alike_with_prompts_of_uneven_length():
    """Sampling steps through the recurrent state, on padded prompts; scoring reads whole rows."""
    policy = delta_policy()
    prompts = [policy.encode(text) for text in ("a34b12:", "x", "b1")]
    batch = policy.sample(prompts, 4, Sampling(max_actions=8), torch.arange(12))
    scored = policy.score(batch, [LogProb()])[LogProb()]
    torch.testing.assert_close(scored, batch["behaviour_logp"], atol=1e-5, rtol=1e-5)
    assert len({tuple(row) for row in batch.actions.tolist()}) > 3 and scored.requires_grad
    policy.max_rows = 5  # rows leave and come in
    again = policy.sample(prompts, 4, Sampling(max_actions=8), torch.arange(12))
    assert torch.equal(again.actions, batch.actions)


def test_its_cache_is_that_of_a_recurrent_layer():
    cache, plain = make_cache(delta_policy().module.config)
    assert not plain and isinstance(cache, DynamicCache) and len(cache.layers) == 2


def test_saved_and_loaded_it_is_the_same(tmp_path):
    policy = delta_policy()
    batch = policy.demonstrate([policy.encode("a3")], ["b12"])
    policy.save(tmp_path)
    expected = policy.score(batch, [LogProb()])[LogProb()]
    torch.testing.assert_close(load_causal_lm(tmp_path).score(batch, [LogProb()])[LogProb()], expected)
    torch.testing.assert_close(policy.clone().score(batch, [LogProb()])[LogProb()], expected)


@pytest.mark.parametrize("gap", [False, True])
def test_states_after_actions_are_those_of_the_plain_forward(gap: bool):
    policy = delta_policy()
    batch = policy.demonstrate([policy.encode("a34"), policy.encode("b")], ["12", "3456"])
    if gap:
        batch = Batch(batch.mask & (torch.arange(batch.shape[1]) != 1), batch.actions, {"present": batch.mask}, {}, batch.contexts)
    states = policy.action_states(batch)
    for row, (prompt, text) in enumerate((("a34", "12"), ("b", "3456"))):
        ids = torch.tensor([[*policy.encode(prompt), *policy.encode_completion(text)]])
        plain = policy.backbone.hidden(ids)[0, len(prompt) :]
        where = batch.mask[row, : len(plain)]
        torch.testing.assert_close(states[row, : len(plain)][where], plain[where].detach())
    assert not states[~batch.mask].any() and not states.requires_grad
