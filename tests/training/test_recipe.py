"""Recipes as values: neighbours, joins, and names that are refused with a way out."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.estimator import Objective, Term
from quatrain.knobs import Knob
from quatrain.parts.advantages import GroupRelative, LeaveOneOut
from quatrain.parts.bounds import Clip
from quatrain.rollout.sources import Demonstrations, OnPolicy
from quatrain.training.driver import build, run
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import REGISTRY, entries, find, make, recipe
from quatrain.training.rules import AdamW
from quatrain.training.selves import Critic, Frozen, Given
from quatrain.training.state import State
from quatrain.training.steps import Collect, Fit, Sync
from tests.toy import ToyTask


def terms(of: Recipe) -> dict[str, Term]:
    return {name: term for _, fit in of.fits(Objective) for name, term in fit.loss.terms.items()}


# -- neighbours --------------------------------------------------------------------------------------------------------
def test_changing_one_part_leaves_the_rest_and_the_original():
    grpo = make("grpo", kl=0.0)
    other = grpo.but(advantage=LeaveOneOut(), bound=Clip(0.1, 0.1))
    assert terms(other)["policy"].advantage == LeaveOneOut() and terms(other)["policy"].bound == Clip(0.1, 0.1)
    assert terms(other)["policy"].denominator == terms(grpo)["policy"].denominator
    assert terms(grpo)["policy"].advantage == GroupRelative() and other.stages[0].steps[0] is grpo.stages[0].steps[0]


def test_one_term_of_several():
    assert terms(make("grpo").but("kl", weight=0.5))["kl"].weight == 0.5
    with pytest.raises(QuatrainError, match=r"(?s)ambiguous or unknown.*policy, kl"):
        make("grpo").but(weight=0.5)
    with pytest.raises(QuatrainError, match="'kll' is ambiguous or unknown"):
        make("grpo").but("kll", weight=0.5)


def test_an_unknown_part_is_refused_with_the_nearest():
    with pytest.raises(QuatrainError, match=r"(?s)no part 'advantege'.*did you mean 'advantage'"):
        make("rloo").but(advantege=LeaveOneOut())


def test_a_term_of_one_of_two_stages():
    both = make("sft").then(make("rloo"))
    with pytest.raises(QuatrainError, match=r"(?s)ambiguous.*sft\.policy, rloo\.policy"):
        both.but("policy", weight=2.0)
    changed = both.but("rloo.policy", weight=2.0)
    assert [fit.loss.terms["policy"].weight for _, fit in changed.fits(Objective)] == [1.0, 2.0]


def test_other_changes():
    grpo = make("grpo", kl=0.0)
    assert set(terms(grpo.with_terms(more=Term()))) == {"policy", "more"}
    ((_, fit),) = grpo.with_fit(epochs=3, rule=AdamW(lr=0.1)).fits(Objective)
    assert fit.epochs == 3 and fit.rule.lr == 0.1
    assert grpo.with_collect(source=OnPolicy(group=2)).stages[0].steps[0].source.group == 2
    assert set(grpo.with_models(reference=Frozen(), teacher=Given()).models) == {"reference", "teacher"}
    both = grpo.then(grpo)
    for change in (lambda: both.with_collect(edits=()), lambda: both.with_fit(epochs=2), lambda: both.with_terms(more=Term())):
        with pytest.raises(QuatrainError, match="several"):
            change()


def test_joining_keeps_stages_models_controllers_and_shares_knobs():
    def controller(state, metrics):
        return {}

    first = make("sft")
    second = Recipe(make("grpo").stages, models=make("grpo").models, controllers=(controller,), name="grpo")
    both = first.then(second)
    assert [stage.name for stage in both.stages] == ["sft", "grpo"] and both.controllers == (controller,)
    assert set(both.models) == {"reference"} and set(both.knobs()) == set(first.knobs()) | set(second.knobs())
    assert set(second.then(second).models) == {"reference"}
    with pytest.raises(QuatrainError, match="make one model differently"):
        second.then(second.with_models(reference=Given("reference")))


# -- reading and checking ----------------------------------------------------------------------------------------------
def test_fits_by_the_kind_of_their_loss():
    ppo = make("ppo")
    assert [fit.model for _, fit in ppo.fits()] == ["policy", "critic"] and [fit.model for _, fit in ppo.fits(Objective)] == ["policy"]


def test_a_recipe_is_checked_as_a_whole():
    make("hpt").check(ToyTask(), {"lr": 0.1})
    with pytest.raises(QuatrainError, match=r"(?s)unknown knob 'learning_rate'.*known names: lr"):
        make("sft").check(ToyTask(), {"learning_rate": 0.1})
    with pytest.raises(QuatrainError, match="did you mean 'prompts'"):
        make("sft").check(ToyTask(), {"prompt": 4})
    with pytest.raises(QuatrainError, match="'value' is needed by the advantage of term 'policy'"):
        make("ppo").with_collect(edits=()).check(ToyTask())
    with pytest.raises(QuatrainError, match="'old_logp' is needed by the denominator of term 'policy'"):
        make("grpo", kl=0.0).with_collect(source=Demonstrations()).but(advantage=lambda batch: batch["reward"]).check(ToyTask())


def test_what_one_stage_collects_the_next_has_to_collect_itself():
    """A stage can be resumed at any round: it fills every store that it reads."""
    fit = Fit(Objective({"policy": Term()}))
    with pytest.raises(QuatrainError, match="store that no step before it fills"):
        Recipe((Stage((Collect(Demonstrations()),)), Stage((fit,)))).check(ToyTask())


def test_knobs_of_a_recipe():
    assert make("grpo").knobs()["prompts"] == 32 and set(make("dr-grpo").knobs()) >= {"max_actions", "temperature", "lr", "steps"}
    twice = Recipe((Stage((), rounds=Knob("n", 1)), Stage((), rounds=Knob("n", 2))))
    with pytest.raises(QuatrainError, match="two defaults"):
        twice.knobs()


# -- models ------------------------------------------------------------------------------------------------------------
def test_other_selves():
    policy = ToyTask().policy()
    frozen = Frozen()({"policy": policy}, {})
    assert frozen is not policy and not frozen.table.requires_grad and frozen.table.equal(policy.table)
    given = Given("teacher")({}, {"teacher": policy})
    assert given is not policy and given.table.equal(policy.table)
    with pytest.raises(QuatrainError, match=r"(?s)needs a teacher.*teacher=PATH"):
        Given("teacher")({}, {})
    with pytest.raises(QuatrainError, match="TabularPolicy"):
        Critic()({"policy": policy}, {})


# -- the registry ------------------------------------------------------------------------------------------------------
def test_recipes_by_name_and_family():
    names = [entry.name for entry in entries()]
    assert {"sft", "reinforce", "rloo", "grpo", "dr-grpo", "dapo", "gspo", "dpo", "opd", "ppo", "hpt"} <= set(names)
    assert {entry.name for entry in entries("*grpo")} >= {"grpo", "dr-grpo"}
    assert all(entry.family == "hybrid" for entry in entries(family="hybrid")) and entries(family="hybrid")
    assert find("hpt").paper == "2509.04419" and find("hpt").summary.startswith("Hybrid Post-Training")


def test_texts_are_converted_to_the_declared_types():
    assert terms(make("dr-grpo", clip="0.1"))["policy"].bound == Clip(0.1, 0.1)
    assert make("hpt", soft="true", group="4").stages[0].steps[0].source.group == 4


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("grpoo", {}, "(?s)unknown recipe 'grpoo'.*did you mean 'grpo'"),
        ("grpo", {"gruop": 4}, "(?s)grpo has no option 'gruop'.*did you mean 'group'"),
        ("grpo", {"group": "many"}, "(?s)option 'group' of grpo has the wrong type.*'many'.*int"),
        ("hpt", {"version": "draft"}, "(?s)option 'version' of hpt has the wrong type.*paper.*code"),
    ],
)
def test_what_is_not_known_is_refused(name: str, options: dict, says: str):
    with pytest.raises(QuatrainError, match=says):
        make(name, **options)


def test_two_recipes_cannot_have_one_name():
    def other() -> Recipe:
        """Another."""
        return make("sft")

    with pytest.raises(QuatrainError, match="two recipes have one name"):
        recipe("sft", family="basics", title="")(other)
    assert REGISTRY["sft"].build.__module__ == "quatrain.recipes.basics.sft"


def test_a_recipe_that_changes_one_part_is_a_function_of_a_few_lines():
    @recipe("test-half", family="test", title="Half")
    def half(weight: float = 0.5) -> Recipe:
        """GRPO at half weight."""
        return make("grpo", kl=0.0).but(weight=weight)

    try:
        built = make("test-half", weight="0.25")
        assert built.name == "test-half" and built.summary == "GRPO at half weight." and terms(built)["policy"].weight == 0.25
    finally:
        del REGISTRY["test-half"]


def test_a_joined_recipe_takes_its_frozen_copy_when_its_stage_begins():
    """The KL penalty of sft → grpo is to the model after sft."""
    recipe = make("sft").then(make("grpo"))
    assert recipe.stages[0].begin == () and recipe.stages[1].begin == (Sync("policy", "reference"),)
    task = ToyTask()
    here = State(task, {"policy": task.policy()}, knobs={"lr": 0.1, "steps": 1, "prompts": 4, "max_actions": 3})
    seen = []
    build(recipe, here, {})
    run(
        recipe,
        here,
        after=lambda state, metrics: seen.append((state.models["policy"].table.clone(), state.models["reference"].table.clone())),
    )
    (after_sft, before), (_, reference) = seen
    assert torch.equal(reference, after_sft) and not torch.equal(before, after_sft)
