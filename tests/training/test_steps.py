"""Steps: what each refuses before a run, and what each does to the state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.knobs import Knob
from quatrain.parts.advantages import KL, GroupRelative
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import Divergence, LogProb
from quatrain.rollout.edits import AddDemonstrations
from quatrain.rollout.sources import Demonstrations, OnPolicy
from quatrain.stores.replay import Replay, ReplayStore
from quatrain.training.columns import Score, Values
from quatrain.training.describe import explain
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.rules import AdamW
from quatrain.training.selves import Frozen
from quatrain.training.state import State
from quatrain.training.steps import PATIENCE, Collect, Fit, Measure, Repeat, Sync
from tests.toy import ToyTask, case, plain_logp

SOURCE = OnPolicy(group=4, prompts=4, max_actions=3)
PLAIN = Objective({"policy": Term()})


def state(**models: Any) -> State:
    task = ToyTask()
    return State(task=task, models={"policy": task.policy(), **models})


# -- checks ------------------------------------------------------------------------------------------------------------
def check(*steps: Any, models: tuple[str, ...] = ("policy",)) -> dict[str, set[str]]:
    stores: dict[str, set[str]] = {}
    for step in steps:
        step.check(ToyTask(), set(models), stores)
    return stores


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ((Fit(PLAIN),), "store that no step before it fills"),
        ((Collect(SOURCE), Fit(PLAIN, source="replay")), "(?s)no step before it fills.*replay.*fresh"),
        ((Collect(SOURCE), Fit(PLAIN, model="critic")), "(?s)model that the recipe does not have.*critic"),
        ((Collect(SOURCE), Fit(Objective({"policy": Term(likelihood=Divergence("teacher"))}))), "(?s)does not have.*teacher"),
        ((Collect(SOURCE, edits=(Score("reference"),)),), "(?s)asks a model that the recipe does not name.*reference"),
        (
            (Collect(Demonstrations()), Fit(Objective({"policy": Term(GroupRelative())}))),
            "'reward' is needed by the advantage of term 'policy'",
        ),
        ((Collect(SOURCE), Fit(Objective({"kl": Term(KL())}))), r"(?s)'reference_logp' is needed.*edit Score\('reference'\)"),
        ((Sync("policy", "average"),), "(?s)a Sync names a model.*average"),
    ],
)
def test_names_that_nothing_provides_are_refused(steps: tuple, says: str):
    with pytest.raises(QuatrainError, match=says):
        check(*steps)


def test_an_edit_needs_what_comes_before_it():
    @dataclass(frozen=True)
    class Nothing:
        def provides(self, task: Any) -> set[str]:
            return set()

    with pytest.raises(QuatrainError, match="'prompt' is needed by AddDemonstrations"):
        check(Collect(Nothing(), edits=(AddDemonstrations(),)))


def test_what_an_edit_adds_is_there_for_the_next_step():
    steps = (Collect(SOURCE, edits=(Score("reference"), Values())), Fit(Objective({"kl": Term(KL())})), Measure(lambda state: {}))
    steps = (*steps, Sync("policy", "reference"))
    assert {"reference_logp", "value", "next_value"} <= check(*steps, models=("policy", "reference", "critic"))["fresh"]


# -- Collect -----------------------------------------------------------------------------------------------------------
def test_collect_applies_edits_in_order_with_their_knobs():
    @dataclass(frozen=True)
    class Add:
        amount: Any

        def __call__(self, state: State, batch: Batch) -> Batch:
            return batch.with_rows(reward=2 * batch["reward"] + self.amount)

    here = state()
    here.knobs["bonus"] = 3.0
    Collect(SOURCE, edits=(Add(Knob("bonus", 0.0)), Add(1)), into="replay")(here)
    plain = SOURCE(state())
    assert torch.equal(here.stores["replay"]["reward"], 2 * (2 * plain["reward"] + 3) + 1)
    assert here.metrics["seconds/collect"] > 0


def test_scores_and_values_are_columns():
    here = state(reference=ToyTask().policy(5), critic=ToyTask().critic())
    here.models["critic"].module.values.data = torch.arange(12.0)
    Collect(SOURCE, edits=(Score("reference", micro_tokens=4), Score("policy", name="again", micro_tokens=4), Values()))(here)
    batch = here.stores["fresh"]
    expected = torch.where(batch.mask, plain_logp(here.models["reference"].table.detach(), batch), 0.0)
    assert torch.allclose(batch["reference_logp"], expected, rtol=1e-12) and not batch["reference_logp"].requires_grad
    assert torch.allclose(batch["again"], batch["old_logp"], rtol=1e-12)  # what was sampled is what is scored
    assert torch.equal(batch["value"][batch.mask], batch["state"][batch.mask].float())
    assert here.spent["tokens/scored"] == 2 * int(batch.mask.sum())


def test_a_model_is_scored_in_its_own_role_where_there_is_one():
    seen: list[str] = []

    class Watching:
        def score(self, batch: Batch, statistics: Any, role: str = "policy", others: Any = None) -> dict:
            seen.append(role)
            return {LogProb(): torch.zeros(batch.shape)}

    here = state(teacher=Watching())
    batch = SOURCE(here)
    Score("teacher", micro_tokens=1000)(here, batch)
    Score("teacher", micro_tokens=1000)(here, batch.with_context("teacher", hint=torch.zeros(len(batch))))
    assert seen == ["policy", "teacher"]


# -- Fit ---------------------------------------------------------------------------------------------------------------
def test_a_fit_makes_epochs_times_minibatches_updates():
    here = state()
    here.stores["fresh"] = SOURCE(here)
    Fit(PLAIN, rule=AdamW(lr=0.01), epochs=3, minibatches=2)(here)
    assert here.spent["updates"] == 6 == here.models["policy"].version
    metrics = here.close_round()
    assert metrics["skipped"] == 0 and metrics["gradient_norm"] > 0 and metrics["rows/active"] == 1.0


def test_another_models_updates_are_counted_by_its_name():
    here = state(student=ToyTask().policy(3))
    here.stores["fresh"] = SOURCE(here)
    before = here.models["policy"].table.detach().clone()
    Fit(PLAIN, model="student", rule=AdamW(lr=0.01))(here)
    assert here.spent["updates"] == 0 and here.spent["student/updates"] == 1 and torch.equal(here.models["policy"].table, before)
    assert {"student/skipped", "student/gradient_norm", "seconds/fit/student"} <= set(here.close_round())


@pytest.mark.parametrize("tokens", [1000, 9, 1])
def test_measures_do_not_depend_on_the_micro_batches(tokens: int):
    found = []
    for size in (1000, tokens):
        here = state()
        here.stores["fresh"] = SOURCE(here)
        term = Term(GroupRelative(), Ratio("current", "old"))
        Fit(Objective({"policy": term}), rule=AdamW(lr=0.01), epochs=2, micro_tokens=size)(here)
        found.append({name: value for name, value in here.close_round().items() if not name.startswith("seconds")})
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0]["policy/coefficient"] > 0


def test_an_empty_store_moves_nothing():
    here = state()
    here.stores["fresh"] = SOURCE(here).take([])
    Fit(PLAIN, rule=AdamW(lr=0.01))(here)
    assert here.spent["updates"] == 0


def test_an_update_that_is_not_finite_is_skipped_and_counted_and_ten_in_a_row_stop_the_run():
    here = state()
    batch = SOURCE(here)
    bad = batch.with_columns(old_logp=torch.full_like(batch["old_logp"], -float("inf")))
    objective = Objective({"policy": Term(denominator=Ratio("current", "old"))})
    fit = Fit(objective, rule=AdamW(lr=0.01), micro_tokens=4)
    before = here.models["policy"].table.detach().clone()
    for count in range(1, PATIENCE):
        here.stores["fresh"] = bad
        fit(here)
        assert here.spent["skipped in a row"] == count and here.close_round()["skipped"] == 1.0
    assert torch.equal(here.models["policy"].table, before) and here.spent["updates"] == 0 and here.models["policy"].version == 0
    assert here.models["policy"].table.grad is None
    here.stores["fresh"] = batch
    fit(here)
    assert here.spent["skipped in a row"] == 0 and here.spent["updates"] == 1
    here.stores["fresh"] = bad
    with pytest.raises(QuatrainError, match=rf"(?s){PATIENCE} updates in a row were skipped.*term 'policy'.*lower lr"):
        for _ in range(PATIENCE):
            fit(here)


def test_one_model_that_learns_does_not_hide_another_that_cannot():
    here = state(student=ToyTask().policy(3))
    batch = SOURCE(here)
    here.stores["fresh"] = batch.with_columns(old_logp=torch.full_like(batch["old_logp"], -float("inf")))
    broken = Fit(Objective({"policy": Term(denominator=Ratio("current", "old"))}), rule=AdamW(lr=0.01))
    fine = Fit(PLAIN, model="student", rule=AdamW(lr=0.01))
    with pytest.raises(QuatrainError, match="updates in a row were skipped"):
        for _ in range(PATIENCE):
            broken(here)
            fine(here)


def test_a_gradient_that_is_not_finite_is_skipped():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: Any, slope: torch.Tensor) -> torch.Tensor:
            return slope * float("nan")

    here = case()
    score = here.policy.score
    here.policy.score = lambda *args, **kwargs: {name: Broken.apply(value) for name, value in score(*args, **kwargs).items()}
    run = State(task=ToyTask(), models={"policy": here.policy}, stores={"fresh": here.batch})
    Fit(PLAIN, rule=AdamW(lr=0.01))(run)
    assert run.spent["skipped in a row"] == 1 and run.spent["updates"] == 0


# -- Sync and Measure --------------------------------------------------------------------------------------------------
def test_sync_moves_the_target_towards_the_source():
    here = state(average=ToyTask().policy(4))
    old, new = (here.models[name].table.detach().clone() for name in ("average", "policy"))
    here.models["policy"].version = 7
    Sync("policy", "average", rate=0.25)(here)
    assert torch.allclose(here.models["average"].table, 0.75 * old + 0.25 * new, rtol=1e-12) and here.models["average"].version == 7
    Sync("policy", "average")(here)
    assert torch.equal(here.models["average"].table, new) and torch.equal(here.models["policy"].table, new)


def test_sync_and_measure_run_every_so_many_rounds():
    here = state(average=ToyTask().policy(4))
    old = here.models["average"].table.detach().clone()
    moved, measured = [], []
    for here.round in range(4):
        Sync("policy", "average", every=2)(here)
        Measure(lambda state: {"x": float(state.round)}, every=Knob("every", 3))(here)
        moved.append(not torch.equal(here.models["average"].table, old))
        measured.append(here.metrics.pop("x", None))
    assert moved == [False, True, True, True] and measured == [None, None, 2.0, None]


@dataclass
class Recorder:
    seen: list[bool] = field(default_factory=list)

    def __call__(self, state: State) -> dict[str, float]:
        self.seen.append(torch.is_grad_enabled())
        return {}


def test_a_measure_has_no_gradient():
    recorder = Recorder()
    Measure(recorder)(state())
    assert recorder.seen == [False]


# -- stores that are kept, and steps that are repeated -------------------------------------------------------------------
def test_a_store_that_the_recipe_keeps_is_added_to_and_saved():
    here = state()
    here.kept["replay"] = ReplayStore(100)
    for _ in range(2):
        Collect(SOURCE, into="replay")(here)
    assert len(here.kept["replay"]) == 32 and "replay" not in here.stores
    again = state()
    again.kept["replay"] = ReplayStore(100)
    again.load_state_dict(here.state_dict())
    assert torch.equal(again.kept["replay"].rows().actions, here.kept["replay"].rows().actions)


def test_a_kept_store_lasts_over_stages_and_others_do_not():
    fill, read = Stage((Collect(SOURCE, into="replay"),)), Stage((Fit(PLAIN, source="replay"),))
    with pytest.raises(QuatrainError, match=r"(?s)a Fit reads a store that no step before it fills.*replay"):
        Recipe((fill, read)).check(ToyTask())
    Recipe((fill, read), stores={"replay": Replay()}).check(ToyTask())
    with pytest.raises(QuatrainError, match="one store differently"):
        Recipe((fill,), stores={"replay": Replay()}).then(Recipe((read,), stores={"replay": Replay(7)}))


def test_repeated_steps_are_found_swapped_and_done():
    fit = Fit(PLAIN, rule=AdamW(lr=0.1))
    recipe = Recipe((Stage((Collect(SOURCE), Repeat((Repeat((fit,), times=2), Sync("policy", "twin")), times=3)), rounds=1),))
    assert [step for _, step in recipe.fits()] == [fit]
    assert [step.loss for _, step in recipe.but(weight=2.0).fits()] != [PLAIN]
    here = state(twin=ToyTask().policy())
    recipe.with_models(twin=Frozen()).check(here.task)
    for step in recipe.stages[0].steps:
        step(here)
    assert here.spent["updates"] == 6 and torch.equal(here.models["twin"].table, here.models["policy"].table)
    assert explain(recipe).index("3 times over") < explain(recipe).index("2 times over") < explain(recipe).index("term policy")
