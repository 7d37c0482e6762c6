"""Network policies: the distribution that acts is the one that is scored; padding is not read; saved is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.networks import Box, Discrete, NetworkPolicy, Squashed, deterministic, load_network
from quatrain.parts.likelihoods import Divergence, Entropy, LogProb
from quatrain.protocols import Policy

SPACES = [Discrete(3), Box((-1.0, -2.0), (1.0, 2.0))]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(space: Discrete | Box, seed: int = 0) -> NetworkPolicy:
    """A policy that is not near uniform."""
    policy = NetworkPolicy(4, space, hidden=(8,), seed=seed)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator(seed + 7))
    return policy


def acted(policy: NetworkPolicy, n: int = 3, t: int = 5, **columns: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """(a batch of rows of lengths n … 1 of the policy's own actions, the log-probabilities it gave)."""
    states = torch.randn(n, t + 1, 4, generator=generator(1))
    actions, logp = policy.act(states[:, :-1].reshape(-1, 4), generator(2))
    mask = torch.arange(t)[None] < torch.tensor([t - 2 * i for i in range(n)])[:, None]
    batch = Batch(mask, actions.unflatten(0, (n, t)), columns=columns, contexts={"policy": {"observations": states}})
    return batch, logp.unflatten(0, (n, t))


@pytest.mark.parametrize("space", SPACES)
def test_is_a_policy(space: Discrete | Box):
    assert isinstance(NetworkPolicy(4, space), Policy)


@pytest.mark.parametrize("space", SPACES)
def test_the_recorded_logp_is_the_scored_one_and_zero_outside_the_mask(space: Discrete | Box):
    policy = moved(space)
    batch, logp = acted(policy)
    scored = policy.score(batch, [LogProb()])[LogProb()]
    torch.testing.assert_close(scored, torch.where(batch.mask, logp, 0.0))


@pytest.mark.parametrize("space", SPACES)
def test_padding_is_not_read(space: Discrete | Box):
    policy = moved(space)
    batch, _ = acted(policy)
    states = batch.contexts["policy"]["observations"].clone()
    states[:, :-1][~batch.mask] = torch.nan
    actions = batch.actions.clone()
    actions[~batch.mask] = -9
    dirty = Batch(batch.mask, actions, contexts={"policy": {"observations": states}})
    for statistic in (LogProb(), Entropy()):
        for one in (batch, dirty):
            policy.module.zero_grad()
            policy.score(one, [statistic])[statistic].sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in policy.module.parameters() if p.grad is not None])
            assert gradient.isfinite().all()
            if one is batch:
                first = gradient
        assert torch.equal(first, gradient) and first.abs().sum() > 0


def test_sampled_frequencies_are_the_softmax_at_its_temperature():
    policy = moved(Discrete(3))
    state = torch.randn(1, 4, generator=generator(3))
    actions, logp = policy.act(state.expand(40_000, 4), generator(), temperature=2.0)
    frequencies = torch.bincount(actions, minlength=3) / 40_000
    expected = (policy.module.trunk(state)[0] / 2.0).softmax(-1)
    torch.testing.assert_close(frequencies, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(logp, expected.log()[actions])


def test_gaussian_samples_have_the_policy_s_mean_and_deviation():
    policy = moved(Box((-1.0, -1.0), (1.0, 1.0)))
    state = torch.randn(1, 4, generator=generator(3))
    actions, _ = policy.act(state.expand(40_000, 4), generator())
    mean, deviation = policy.module.trunk(state)[0], policy.module.log_std.exp()
    torch.testing.assert_close(actions.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(actions.std(0), deviation, atol=0.04, rtol=0)
    assert actions.abs().max() > 1.0  # not clipped: that is the environment's doing


def test_the_temperature_column_is_the_one_sampled_at():
    policy = moved(Discrete(3))
    batch, _ = acted(policy, temperature=torch.full((3, 5), 0.7))
    logits = policy.module.trunk(batch.contexts["policy"]["observations"][:, :-1])
    expected = (logits / 0.7).log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
    torch.testing.assert_close(policy.score(batch, [LogProb()])[LogProb()], torch.where(batch.mask, expected, 0.0))


def test_a_temperature_per_row_and_one_that_is_absent():
    policy = moved(Discrete(3))
    batch, _ = acted(policy, temperature=torch.tensor([[0.7], [1.0], [1.0]]).expand(3, 5))
    per_row = Batch(batch.mask, batch.actions, rows={"temperature": torch.tensor([0.7, 1.0, torch.nan])}, contexts=batch.contexts)
    assert torch.equal(policy.score(batch, [LogProb()])[LogProb()], policy.score(per_row, [LogProb()])[LogProb()])


def test_the_support_column_restricts():
    """Only actions 0 and 2 could be sampled: their probabilities add to one."""
    policy = moved(Discrete(3))
    batch, _ = acted(policy, support=torch.tensor([1, 3]).expand(3, 5, 2))
    total = torch.zeros(3, 5)
    for action in (0, 2):
        one = Batch(batch.mask, torch.full((3, 5), action), columns=batch.columns, contexts=batch.contexts)
        total += policy.score(one, [LogProb()])[LogProb()].exp()
    torch.testing.assert_close(total[batch.mask], torch.ones(9))


def test_a_trimmed_batch_is_scored_as_before():
    policy = moved(Discrete(3))
    batch, _ = acted(policy)
    part = batch.take([1, 2]).trim()
    assert part.shape == (2, 3)
    torch.testing.assert_close(policy.score(part, [LogProb()])[LogProb()], policy.score(batch, [LogProb()])[LogProb()][1:, :3])


def test_a_gaussian_refuses_temperatures():
    policy = moved(SPACES[1])
    with pytest.raises(QuatrainError, match="temperature 1"):
        policy.act(torch.zeros(2, 4), generator(), temperature=0.5)
    batch, _ = acted(policy, temperature=torch.full((3, 5), 0.7))
    with pytest.raises(QuatrainError, match="temperature 1"):
        policy.score(batch, [LogProb()])


@pytest.mark.parametrize("space", SPACES)
def test_greedy_is_the_mode(space: Discrete | Box):
    policy, states = moved(space), torch.randn(6, 4, generator=generator(5))
    best, logp = policy.act(states, greedy=True)
    for seed in range(20):
        assert (policy.act(states, generator(seed))[1] <= logp + 1e-6).all()
    assert torch.equal(best, policy.act(states, generator(9), greedy=True)[0])


def test_sampling_without_a_generator_is_refused():
    with pytest.raises(QuatrainError, match="generator"):
        NetworkPolicy(4, Discrete(2)).act(torch.zeros(1, 4))


def test_initial_weights():
    """Orthogonal with gain √2, then 0.01: nearly uniform actions; the same seed gives the same weights, another one others."""
    policy = NetworkPolicy(4, Discrete(2), seed=3)
    first, middle = policy.module.trunk[0].weight, policy.module.trunk[2].weight
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(4))
    torch.testing.assert_close(middle @ middle.T, 2 * torch.eye(64), atol=1e-5, rtol=1e-5)
    assert policy.module.trunk[4].weight.norm(dim=1).tolist() == pytest.approx([0.01, 0.01])
    assert torch.equal(first, NetworkPolicy(4, Discrete(2), seed=3).module.trunk[0].weight)
    assert not torch.equal(first, NetworkPolicy(4, Discrete(2), seed=4).module.trunk[0].weight)
    state = torch.random.get_rng_state()
    NetworkPolicy(4, Discrete(2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_entropy_of_a_fresh_policy_is_log_of_the_number_of_actions():
    policy = NetworkPolicy(4, Discrete(3))
    batch, _ = acted(policy)
    entropy = policy.score(batch, [Entropy()])[Entropy()]
    torch.testing.assert_close(entropy[batch.mask], torch.full((9,), math.log(3)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("space", SPACES)
def test_a_teacher_is_read_frozen_and_in_its_own_role_when_it_has_one(space: Discrete | Box):
    policy, teacher = moved(space), moved(space, seed=1)
    batch, _ = acted(policy)
    statistic = Divergence("teacher", "reverse")
    gap = policy.score(batch, [statistic], others={"teacher": teacher})[statistic]
    assert (gap[batch.mask] > 0).all() and (gap[~batch.mask] == 0).all()
    gap.sum().backward()
    assert all(p.grad is None for p in teacher.module.parameters())
    assert policy.score(batch, [statistic], others={"teacher": policy.clone()})[statistic].abs().max() < 1e-6
    hinted = batch.with_context("teacher", observations=batch.contexts["policy"]["observations"] + 1)
    assert not torch.allclose(policy.score(hinted, [statistic], others={"teacher": teacher})[statistic], gap)
    with pytest.raises(QuatrainError, match="'teacher'"):
        policy.score(batch, [statistic])


def test_a_clone_is_frozen_and_its_own():
    policy = moved(Discrete(2))
    policy.version = 5
    twin = policy.clone()
    before = twin.module.trunk[0].weight.clone()
    with torch.no_grad():
        policy.module.trunk[0].weight += 1
    assert torch.equal(twin.module.trunk[0].weight, before) and twin.version == 5
    assert not any(p.requires_grad for p in twin.module.parameters()) and all(p.requires_grad for p in policy.module.parameters())


@pytest.mark.parametrize("space", SPACES)
def test_saved_is_loaded(space: Discrete | Box, tmp_path: Path):
    policy = moved(space)
    policy.version = 12
    policy.save(tmp_path / "a" / "b")
    loaded = load_network(tmp_path / "a" / "b")
    assert (loaded.version, loaded.action_space, loaded.hidden) == (12, space, (8,))
    states = torch.randn(6, 4, generator=generator(5))
    assert torch.equal(loaded.act(states, greedy=True)[1], policy.act(states, greedy=True)[1])


def test_what_is_not_a_network_is_not_loaded(tmp_path: Path):
    with pytest.raises(QuatrainError, match="no network policy"):
        load_network(tmp_path)
    policy = moved(Discrete(2))
    policy.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    with pytest.raises(QuatrainError, match="action_space"):
        load_network(tmp_path)
    policy.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:40])
    with pytest.raises(QuatrainError, match="no network policy"):
        load_network(tmp_path)


def test_contexts_that_do_not_fit_are_refused():
    policy = moved(Discrete(2))
    batch, _ = acted(policy)
    with pytest.raises(QuatrainError, match="'critic'"):
        policy.score(batch, [LogProb()], role="critic")
    short = batch.with_context("policy", observations=batch.contexts["policy"]["observations"][:, :-1])
    with pytest.raises(QuatrainError, match="one more than the actions"):
        policy.score(short, [LogProb()])


def test_a_squashed_policy_stays_in_its_box_and_explores_around_one_action(tmp_path: Path):
    policy = deterministic(NetworkPolicy(3, Box((-1.0, 0.0), (3.0, 2.0))), (8,), noise=0.25, dropout=0.5)
    with torch.no_grad():
        policy.module.trunk[-1].bias.copy_(torch.tensor([100.0, -100.0]))
    seen = torch.randn(5, 3)
    best, _ = policy.act(seen, greedy=True)
    assert torch.equal(best, torch.tensor([[3.0, 0.0]]).expand(5, 2))
    distribution = policy.distribution(seen)
    assert torch.allclose(distribution.std, torch.tensor([0.5, 0.25]).expand(5, 2))
    assert policy.action_space.executed == Box((-1.0, 0.0), (3.0, 2.0))
    policy.save(tmp_path)
    again = load_network(tmp_path)
    assert again.action_space == policy.action_space and again.dropout == 0.5 and torch.equal(again.act(seen, greedy=True)[0], best)
    with pytest.raises(QuatrainError, match="actions in a box"):
        deterministic(NetworkPolicy(3, Discrete(2)))
    with pytest.raises(QuatrainError, match="exploration has a width"):
        Squashed((-1.0,), (1.0,), noise=0.0)


def test_dropout_is_of_the_batch_that_brings_its_random_numbers():
    policy = deterministic(NetworkPolicy(3, Box((-1.0,), (1.0,)), seed=1), (64,), dropout=0.5)
    seen = torch.randn(1, 3, generator=torch.Generator().manual_seed(0)).expand(4000, 3)
    draws = torch.arange(4000)
    plain, dropped = policy.distribution(seen).mean, policy.distribution(seen, draws=draws).mean
    assert (dropped != plain).any() and torch.allclose(dropped.mean(), plain.mean(), atol=2e-3)
    assert torch.equal(policy.distribution(seen[:7], draws=draws[10:17]).mean, dropped[10:17])
