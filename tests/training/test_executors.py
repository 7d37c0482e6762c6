"""Rollouts in flight: with no lag the synchronous run, bit for bit; with lag each token under the weights of its version."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.memory import prefill
from quatrain.protocols import Item
from quatrain.recipes.basics.grpo import grpo
from quatrain.rollout.in_flight import KEY
from quatrain.rollout.sources import Demonstrations
from quatrain.tasks.text import TextTask
from quatrain.training.clock import Clock
from quatrain.training.driver import build, run
from quatrain.training.executors import InFlight, synchronous
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.staleness import Staleness
from quatrain.training.state import State
from quatrain.training.steps import Collect
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import ToyTask


class Even:
    """A completion of an even number of letters is right."""

    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [float(len(completion) % 2 == 0) for completion in completions]


ITEMS = [Item(index, "ab"[index % 2] * (1 + index % 3) + str(index)) for index in range(5)]  # fewer than two rounds take
CLOCK = Clock(step=1.0, row=0.01, token=0.05)


def start(**knobs: float) -> State:
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(1, 9))
    policy = CausalLM(model, tiny_tokenizer())
    return State(
        TextTask("even", ITEMS, ITEMS, Even()), {"policy": policy}, knobs={"lr": 3e-3, "prompts": 3, "steps": 5, "max_actions": 12, **knobs}
    )


def recipe(lag: int | None, pool: int = 12, edits: tuple = (), clock: Clock = CLOCK) -> Recipe:
    plain = grpo(4, kl=0.0).with_collect(edits=edits)
    executor = synchronous if lag is None else InFlight(pool, lag, clock)
    return replace(plain, stages=(replace(plain.stages[0], executor=executor),))


def follow(made: Recipe, state: State) -> tuple[State, list[dict], list[dict]]:
    """The run, its metrics and a copy of its state after every round."""
    seen, saved = [], []
    build(made, state, {})

    def after(state: State, metrics: Any) -> None:
        seen.append(dict(metrics))
        saved.append(copy.deepcopy(state.state_dict()))

    return run(made, state, after=after), seen, saved


def weights(state: State) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in state.models["policy"].module.parameters()]


def assert_same(one: State, other: State) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


class Watch:
    """An edit that notes the batches."""

    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def __call__(self, state: State, batch: Batch) -> Batch:
        self.seen.append(batch)
        return batch


def test_without_lag_it_is_the_synchronous_run_bit_for_bit() -> None:
    plain, metrics, _ = follow(recipe(None), start())
    flight, others, _ = follow(recipe(0), start())
    assert_same(plain, flight)
    assert not all(torch.equal(a, b) for a, b in zip(weights(plain), weights(start()), strict=True))
    assert [m["reward"] for m in metrics] == [m["reward"] for m in others] and flight.spent["tokens"] == plain.spent["tokens"]


def test_a_small_pool_draws_the_same_and_takes_longer() -> None:
    watch, small = Watch(), Watch()
    one, _, _ = follow(recipe(0, edits=(watch,)), start(lr=0.0))
    other, _, _ = follow(recipe(0, 4, (small,)), start(lr=0.0))
    for a, b in zip(watch.seen, small.seen, strict=True):
        assert torch.equal(a.actions, b.actions) and torch.equal(a["seed"], b["seed"])
    assert other.spent["simulated_seconds"] > one.spent["simulated_seconds"]


def test_the_clock_is_charged_by_hand() -> None:
    watch = Watch()
    state, _, _ = follow(recipe(0, edits=(watch,)), start(lr=0.0, steps=1))
    (batch,) = watch.seen
    alive = [int((batch.lengths > step).sum()) for step in range(batch.shape[1])]
    expected = sum(1.0 + 0.01 * rows for rows in alive) + 0.05 * int(batch.mask.sum())
    assert state.spent["simulated_seconds"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lag", [1, 2, 4])
@pytest.mark.parametrize("pool", [8, 40])
def test_no_trajectory_is_older_than_the_lag_and_groups_come_whole(lag: int, pool: int) -> None:
    watch = Watch()
    state, metrics, _ = follow(recipe(lag, pool, (watch, Staleness())), start(steps=10))
    oldest = [int((round - batch["version"])[batch.mask].max()) for round, batch in enumerate(watch.seen)]
    assert max(oldest) <= lag and max(oldest) > 0
    assert any(len(set(row[mask].tolist())) > 1 for b in watch.seen for row, mask in zip(b["version"], b.mask, strict=True))  # mid-sequence
    for batch, numbers in zip(watch.seen, metrics, strict=True):
        assert len(batch) == 12 and numbers["in_flight/queue"] <= 3 * lag and numbers["in_flight/rows"] <= pool
        assert all(len(set(batch["prompt"][4 * group : 4 * group + 4].tolist())) == 1 for group in range(3))
        assert 0 < numbers["ess"] <= 1 + 1e-9 and numbers["lag/max"] <= lag
    assert metrics[0]["ess"] == pytest.approx(1.0) and min(numbers["ess"] for numbers in metrics) < 1
    assert state.spent["simulated_seconds"] == metrics[-1]["simulated_seconds"]


def test_every_token_is_of_the_weights_of_its_version_on_the_keys_that_were_left() -> None:
    """Recomputed with the weights of every round: prefill under the first version, then token by token under each one's own."""
    watch = Watch()
    _, _, saved = follow(recipe(3, 24, (watch,)), start(steps=8))
    fresh = start()
    versions = [{name: value.clone() for name, value in fresh.models["policy"].module.state_dict().items()}]
    versions += [state["models"]["policy"]["weights"] for state in saved]
    policy, checked = fresh.models["policy"], 0
    for batch in watch.seen[3:]:
        for row in range(0, len(batch), 2):
            mask = batch.mask[row]
            version, actions, logp = batch["version"][row][mask].tolist(), batch.actions[row][mask], batch["behaviour_logp"][row][mask]
            if len(set(version)) == 1:
                continue
            assert version == sorted(version)
            context = batch.contexts["policy"]
            prompt = context["tokens"][row][context["mask"][row]].tolist()
            for step, (action, number) in enumerate(zip(actions, version, strict=True)):
                policy.module.load_state_dict(versions[number], strict=False)
                with torch.no_grad():
                    if step == 0:
                        hidden, memory = prefill(policy.backbone, [prompt], 0, 100)
                    else:
                        hidden = memory.advance(actions[step - 1 : step], None)
                    expected = policy.backbone.logits(hidden)[0].log_softmax(-1)[action]
                torch.testing.assert_close(logp[step], expected, rtol=0, atol=1e-5)
                checked += 1
    assert checked > 50


def test_cut_anywhere_and_resumed_it_is_the_same_run() -> None:
    """Rows under way, versions and keys and values included."""
    made = recipe(2, 24, (Staleness(),))
    whole, metrics, saved = follow(made, start())
    assert any(state["memory"][KEY]["decoding"]["ids"] for state in saved)
    for index, kept in enumerate(saved[:-1]):
        resumed = start()
        build(made, resumed, {})
        resumed.load_state_dict(kept)
        later: list[dict] = []
        run(made, resumed, after=lambda state, found, later=later: later.append(dict(found)))
        assert_same(resumed, whole)
        assert resumed.spent == whole.spent
        for a, b in zip(later, metrics[index + 1 :], strict=True):
            assert {k: v for k, v in a.items() if "seconds/" not in k} == {k: v for k, v in b.items() if "seconds/" not in k}


def test_what_it_cannot_do_is_refused() -> None:
    other = Recipe((Stage((Collect(Demonstrations()),), executor=InFlight()),))
    with pytest.raises(QuatrainError, match="OnPolicy"):
        other.check(ToyTask())
    for pool, lag in ((2, 1), (24, -1)):
        with pytest.raises(QuatrainError, match="in flight"):
            follow(recipe(lag, pool), start(steps=1))


def test_a_task_that_cannot_be_interrupted_is_collected_whole() -> None:
    states = []
    for lag in (None, 3):
        task = ToyTask()
        made = recipe(lag)
        state = State(task, {"policy": task.policy()}, knobs={"lr": 0.1, "prompts": 4, "steps": 2, "max_actions": 3})
        build(made, state, {})
        states.append(run(made, state))
    assert torch.equal(states[0].models["policy"].table, states[1].models["policy"].table)
    assert states[1].spent["simulated_seconds"] > 0
