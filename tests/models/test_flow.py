"""The flow policy: its two ways of acting, the solver's steps, log-probabilities that are recomputed, files, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from quatrain.environments.plane.task import PlaneTask
from quatrain.errors import QuatrainError
from quatrain.models.critics import MLPCritic, make_critic
from quatrain.models.flow import FlowPolicy, load_flow
from quatrain.models.networks import Box, Discrete
from quatrain.models.paths import PATHS
from quatrain.models.solver import integrate, step_size
from quatrain.parts.likelihoods import Entropy, LogProb
from quatrain.protocols import Sampling

BOX = Box((-1.0, -1.0), (1.0, 1.0))


def policy(**options: float | str) -> FlowPolicy:
    made = FlowPolicy(2, BOX, (16, 16), **options)
    with torch.no_grad():  # a velocity worth the name
        made.module.velocity[0].weight.mul_(30)
    return made


# -- the solver --------------------------------------------------------------------------------------------------------
def test_the_step_is_tolerance_over_spread_within_its_bounds():
    spread, time = torch.tensor([0.5, 0.01, 9.0, 0.5, 0.0]), torch.tensor([0.0, 0.0, 0.5, 0.95, 0.3], dtype=torch.float64)
    assert step_size(spread, time, 0.1, 20).tolist() == pytest.approx([0.2, 1.0, 0.05, 0.05, 0.7])


@pytest.mark.parametrize("most", [1, 3, 7, 10, 20, 49])
def test_without_tolerance_the_steps_are_equal_and_sum_to_one_exactly(most: int):
    walked = torch.zeros(5, dtype=torch.float64)

    def field(rows, point, time):
        return torch.ones_like(point), torch.rand(len(rows), generator=torch.Generator().manual_seed(0))

    def advance(point, velocity, time, step):
        return point + step.double() * velocity

    end, count = integrate(field, advance, walked[:, None], 0.0, most)
    assert count.tolist() == [most] * 5 and end[:, 0].tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_every_point_walks_at_its_own_pace_and_ends_at_one():
    spreads = torch.tensor([0.0, 0.2, 0.4, 5.0])
    times: dict[int, list[float]] = {row: [] for row in range(4)}

    def field(rows, point, time):
        for row, now in zip(rows.tolist(), time.tolist(), strict=True):
            times[row].append(now)
        return torch.zeros_like(point), spreads[rows]

    _, count = integrate(field, PATHS["straight"].advance, torch.zeros(4, 1), 0.1, 10)
    assert count.tolist() == [1, 2, 4, 10]
    for row, starts in times.items():
        steps = torch.tensor([*starts, 1.0], dtype=torch.float64).diff()
        assert steps.sum().item() == 1.0 and (steps > 0).all(), row


def test_a_straight_flow_is_solved_in_one_step_and_a_circle_by_ddim_exactly():
    noise, action = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([[0.3, -0.7]]).expand(50, 2)
    for path in PATHS.values():
        for most in (1, 4):
            field = lambda rows, point, time: (path.mix(noise[rows], action[rows], time.float()[:, None])[1], torch.zeros(len(rows)))  # noqa: B023, E731
            end, count = integrate(field, path.advance, noise, 0.0, most)
            assert torch.allclose(end, action, atol=1e-5) and (count == most).all()


@pytest.mark.parametrize("name", PATHS)
def test_a_path_goes_from_noise_to_action_along_its_velocity(name: str):
    path, g = PATHS[name], torch.Generator().manual_seed(0)
    noise, action = (torch.randn(20, 2, generator=g, dtype=torch.float64) for _ in range(2))
    time = torch.rand(20, 1, generator=g, dtype=torch.float64)
    point, velocity = path.mix(noise, action, time)
    assert torch.allclose(path.mix(noise, action, torch.zeros_like(time))[0], noise)
    assert torch.allclose(path.mix(noise, action, torch.ones_like(time))[0], action)
    ahead = path.mix(noise, action, time + 0.01)[0]
    assert torch.allclose(path.advance(point, velocity, time, torch.full_like(time, 0.01)), ahead)
    assert torch.allclose(path.noise_in(point, velocity, time), noise)


# -- greedy ------------------------------------------------------------------------------------------------------------
def test_one_step_is_noise_plus_velocity_and_many_steps_are_eulers():
    seen = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(30, 2, generator=torch.Generator().manual_seed(2))
    one, many = policy(tolerance=math.inf), policy(tolerance=0.0, steps=10)
    end, count = one.solve(seen, noise)
    assert torch.allclose(end, noise + one.field(seen, noise, torch.zeros(30))[0], atol=1e-6) and (count == 1).all()
    point = noise
    for k in range(10):
        point = point + 0.1 * many.field(seen, point, torch.full((30,), k / 10))[0]
    end, count = many.solve(seen, noise)
    assert torch.allclose(end, point, atol=1e-4) and (count == 10).all()
    made = many.decide(seen, torch.Generator().manual_seed(2), greedy=True)
    assert torch.allclose(made.executed, end) and made.logp.isnan().all() and torch.equal(made.evaluations, count)


def test_actions_are_in_units_of_the_box():
    wide = FlowPolicy(2, Box((0.0, 10.0), (4.0, 20.0)), (8,))
    assert wide._executed(torch.tensor([[0.0, 1.0]])).tolist() == [[2.0, 20.0]]
    assert wide.action_space.unit(torch.tensor([[2.0, 20.0]])).tolist() == [[0.0, 1.0]]


# -- as a chain of actions ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", PATHS)
def test_what_was_sampled_is_scored_alike(path: str):
    """Log-probabilities of denoising steps, recomputed from the batch: the ratio is 1 before the first update."""
    task = PlaneTask("reach")
    made = FlowPolicy(4, task.action_space, (16, 16), path=path, chain=4)
    batch = task.rollout(made, task.starts("train", 0, 6), 2, Sampling(max_actions=7), seed=0)
    assert batch.shape[1] == 28 and batch.actions.shape == (12, 28, 2) and batch["latent"].shape == (12, 28, 2)
    assert torch.equal(batch["denoising"][batch.mask].view(-1, 4), torch.arange(4).expand(int(batch.mask.sum()) // 4, 4))
    for inner in (1, 2, 3):
        assert torch.equal(batch["latent"][:, inner::4], batch.actions[:, inner - 1 :: 4] * batch.mask[:, inner::4, None])
    scores = made.score(batch, [LogProb(), Entropy()])
    assert (scores[LogProb()] - batch["old_logp"])[batch.mask].abs().max() < 1e-4
    scores[LogProb()].sum().backward()
    trained = {name: value.grad for name, value in made.module.named_parameters()}
    assert trained["velocity.0.weight"].abs().max() > 0 and trained["log_std.0.weight"] is None
    assert not batch["old_logp"].isnan().any()


def test_a_step_is_the_gaussian_that_is_written():
    made = policy(chain=5, noise=0.7)
    seen, point = torch.randn(9, 2), torch.randn(9, 2)
    step = made._step(seen, point, torch.full((9,), 2))
    velocity = made.field(seen, point, torch.full((9,), 0.4))[0]
    expected = point + 0.2 * velocity - 0.7**2 / 2 * 0.2 * (point - 0.4 * velocity)
    assert torch.allclose(step.mean, expected, atol=1e-6) and torch.allclose(step.std, torch.tensor(0.7 * math.sqrt(0.6 * 0.2)))


@pytest.mark.parametrize("path", PATHS)
def test_the_chain_has_the_marginals_of_the_equation(path: str):
    """Data N(1, 0.5²), whose velocity is known: a long noisy chain ends in that distribution, whatever the noise."""
    mean, std = 1.0, 0.5

    class Known(FlowPolicy):
        def field(self, seen, point, time, shared=True):
            t = time[:, None].double()
            noise, action = (t * math.pi / 2).cos(), (t * math.pi / 2).sin()
            rates = (-action, noise)
            if path == "straight":
                noise, action, rates = 1 - t, t, (-1.0, 1.0)
            left = point.double() - action * mean
            variance = noise**2 + action**2 * std**2
            expected_noise, expected_action = noise * left / variance, mean + action * std**2 * left / variance
            return (rates[0] * expected_noise + rates[1] * expected_action).float(), torch.zeros(len(point))

    made = Known(1, Box((-1.0,), (1.0,)), (8,), path=path, chain=100, noise=1.0)
    ends = made.decide(torch.zeros(20000, 1), torch.Generator().manual_seed(0)).actions[:, -1, 0]
    assert ends.mean().item() == pytest.approx(mean, abs=0.02) and ends.std().item() == pytest.approx(std, abs=0.02)


def test_a_critic_sees_the_environment_and_copies_are_frozen():
    made = policy()
    critic, twin = make_critic(made), made.clone()
    assert isinstance(critic, MLPCritic) and critic.observation_size == 2
    assert not any(value.requires_grad for value in twin.module.parameters()) and twin.chain == made.chain


# -- files and refusals ------------------------------------------------------------------------------------------------
def test_what_is_saved_is_loaded(tmp_path: Path):
    made = policy(path="cosine", tolerance=0.3, steps=7, chain=3, noise=0.9)
    made.version = 5
    made.save(tmp_path)
    back = load_flow(tmp_path)
    for name in ("path", "tolerance", "steps", "chain", "noise", "version", "hidden", "action_space", "observation_size"):
        assert getattr(back, name) == getattr(made, name)
    seen, noise = torch.randn(5, 2), torch.randn(5, 2)
    assert torch.equal(back.solve(seen, noise)[0], made.solve(seen, noise)[0])
    (tmp_path / "config.json").write_text(json.dumps({"kind": "network"}))
    with pytest.raises(QuatrainError, match="no flow policy"):
        load_flow(tmp_path)


def test_refusals():
    with pytest.raises(QuatrainError, match="box"):
        FlowPolicy(2, Discrete(2))
    with pytest.raises(QuatrainError, match="straight"):
        FlowPolicy(2, BOX, path="strait")
    with pytest.raises(QuatrainError, match="walked in steps"):
        FlowPolicy(2, BOX, chain=0)
    with pytest.raises(QuatrainError, match="chain of denoising steps"):
        policy().act(torch.zeros(1, 2), torch.Generator())
