"""Critics: the value before an action sees what the policy saw, and nothing later."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.critics import LMCritic, MLPCritic, make_critic, value_columns
from quatrain.models.networks import Discrete, NetworkPolicy
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- networks ----------------------------------------------------------------------------------------------------------
def walk(n: int = 3, t: int = 4) -> Batch:
    states = torch.randn(n, t + 1, 2, generator=generator())
    return Batch(torch.ones(n, t, dtype=torch.bool), torch.zeros(n, t), contexts={"policy": {"observations": states}})


def summing() -> MLPCritic:
    """V(s) = s₀ + 10·s₁ + 1."""
    critic = MLPCritic(2, hidden=())
    with torch.no_grad():
        critic.module[0].weight.copy_(torch.tensor([[1.0, 10.0]]))
        critic.module[0].bias.fill_(1.0)
    return critic


def test_values_are_those_of_the_states():
    batch = walk()
    expected = batch.contexts["policy"]["observations"] @ torch.tensor([1.0, 10.0]) + 1
    torch.testing.assert_close(summing().values(batch), expected)


def test_value_and_next_value_are_one_step_apart():
    batch = walk()
    values, columns = summing().values(batch), value_columns(summing(), batch)
    assert torch.equal(columns["value"], values[:, :-1]) and torch.equal(columns["next_value"], values[:, 1:])
    assert not columns["value"].requires_grad and values.requires_grad


def test_values_outside_the_mask_are_zero():
    batch = walk()
    states = batch.contexts["policy"]["observations"].clone()
    states[0, 3:] = torch.nan
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2:] = False
    columns = value_columns(summing(), Batch(mask, batch.actions, contexts={"policy": {"observations": states}}))
    assert (columns["value"][0, 2:] == 0).all() and (columns["next_value"][0, 2:] == 0).all()
    assert columns["next_value"][0, 1] != 0  # the state after the last action is real


def test_a_trimmed_batch_has_values():
    batch = walk()
    short = Batch(batch.mask & (torch.arange(4) < 2), batch.actions, contexts=batch.contexts)
    assert torch.equal(summing().values(short.trim()), summing().values(short)[:, :3])


def test_initial_weights_are_the_seed_s():
    assert torch.equal(MLPCritic(4, seed=1).module[0].weight, MLPCritic(4, seed=1).module[0].weight)
    assert not torch.equal(MLPCritic(4, seed=1).module[0].weight, MLPCritic(4, seed=2).module[0].weight)
    assert MLPCritic(4).module[-1].weight.norm().item() == pytest.approx(1.0)


def test_a_network_s_critic_has_its_shape():
    critic = make_critic(NetworkPolicy(5, Discrete(2), hidden=(7, 9)), seed=3)
    assert [layer.weight.shape for layer in critic.module if isinstance(layer, nn.Linear)] == [(7, 5), (9, 7), (1, 9)]
    assert torch.equal(critic.module[0].weight, MLPCritic(5, (7, 9), seed=3).module[0].weight)


def test_what_has_no_critic_is_refused():
    with pytest.raises(QuatrainError, match="no critic"):
        make_critic(object())


# -- language models ---------------------------------------------------------------------------------------------------
def language(architecture: str = "qwen3") -> tuple[CausalLM, LMCritic]:
    tokenizer = tiny_tokenizer()
    policy = CausalLM(tiny_model(architecture, vocabulary=len(tokenizer)), tokenizer)
    critic = make_critic(policy)
    with torch.no_grad():
        critic.module["head"].weight.copy_(torch.randn(critic.module["head"].weight.shape, generator=generator(5)))
    return policy, critic


PROMPTS, ANSWERS = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_text_s_values_are_read_off_the_token_before(architecture: str):
    """Row by row without padding, V before action t is the head at the last token of prompt + answer[:t]; at the end it stays."""
    policy, critic = language(architecture)
    values = critic.values(policy.demonstrate(PROMPTS, ANSWERS))
    assert values.shape == (2, 5)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for t in range(5):
            ids = torch.tensor([prompt + answer[:t]])
            hidden = critic.module["decoder"](input_ids=ids).last_hidden_state[0, -1]
            torch.testing.assert_close(values[row, t], critic.module["head"](hidden)[0], atol=1e-4, rtol=1e-4)


def test_observed_tokens_are_passed_over():
    """A tool's answer (present, no action) stands between two actions: the value before the second has seen it."""
    _, critic = language()
    context = {"tokens": torch.tensor([[5, 6]]), "mask": torch.ones(1, 2, dtype=torch.bool)}
    present, mask = torch.tensor([[True, True, True, False]]), torch.tensor([[True, False, True, False]])
    batch = Batch(mask, torch.tensor([[7, 8, 9, 0]]), columns={"present": present}, contexts={"policy": context})
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    expected = critic.module["head"](critic.module["decoder"](input_ids=ids).last_hidden_state)[0, [1, 2, 3, 4, 4], 0]
    torch.testing.assert_close(critic.values(batch)[0], expected)


def test_a_value_does_not_see_the_future():
    policy, critic = language()
    one, other = critic.values(policy.demonstrate([PROMPTS[0]] * 2, [[9, 10, 11], [9, 10, 12]]))
    torch.testing.assert_close(one[:3], other[:3])
    assert one[3] != other[3]


def test_a_fresh_head_says_zero_and_its_backbone_is_a_copy():
    policy, _ = language()
    critic = make_critic(policy)
    batch = policy.demonstrate(PROMPTS, ANSWERS)
    assert (critic.values(batch) == 0).all()
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    with torch.no_grad():
        for parameter in critic.module.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in policy.module.state_dict().items())


def test_a_critic_of_texts_learns():
    policy, _ = language()
    critic, batch = make_critic(policy), policy.demonstrate(PROMPTS, ANSWERS)
    target = torch.tensor([[1.0], [-1.0]])
    optimizer = torch.optim.Adam(critic.module.parameters(), lr=3e-3)
    for _ in range(40):
        loss = (critic.values(batch)[:, :-1] - target)[batch.mask].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_a_missing_context_is_named():
    policy, critic = language()
    with pytest.raises(QuatrainError, match="'hinted'"):
        critic.values(policy.demonstrate(PROMPTS, ANSWERS), role="hinted")
