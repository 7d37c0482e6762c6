from __future__ import annotations

from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.rollout.sources import OnPolicy
from quatrain.search.endpoint import Endpoint
from quatrain.search.library import library_table
from quatrain.search.revisions import Contrasts, RandomRules, Revise
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.search import Search, WithLibrary
from quatrain.training.steps import Collect, Measure

ROUNDS = Knob("steps", 15)


@recipe("training-free-grpo", family="agentic", title="Training-Free Group Relative Policy Optimization", paper="2510.08191")
def training_free_grpo(
    group: int = 5,
    propose: Literal["contrasts", "random", "endpoint"] = "contrasts",
    alone: Literal["skipped", "successes", "all"] = "skipped",
    most: int = 4,
    size: int = 32,
    library: str = "",
    base_url: str = "",
    llm: str = "",
) -> Recipe:
    """No gradient: why the better rollouts of a group were better becomes rules in the context of a frozen policy.

    o_1 … o_G ~ π(·|q, E);   A_text = LLM(why the better ones won);   E ← operations of A_text: add, modify, delete, keep

    Groups whose rewards are all equal are skipped. With a language model E is text before the prompt. In a table it is
    log π(a|s, E) = log π(a|s) + Σ_{e∈E} w_e φ_e(s, a), and a script compares in place of the language model: features that winners have
    more often than losers gain weight, others lose it (this form is no equation of the paper).

    propose   ``contrasts``: the script; ``random``: rules at random, as many; ``endpoint``: the language model ``llm`` at ``base_url``
              (an OpenAI-compatible one; empty: OPENAI_MODEL, OPENAI_BASE_URL), its key in OPENAI_API_KEY.
    alone     what is learnt from rollouts that are alone in their group, for the paper's ablation group=1: nothing, from those that
              succeeded, or also from those that failed (a language model is shown all of them in both cases).
    most      operations per group; size: the most rules; library: a file to begin with (``library.json`` of a run).

    With an empty library it is the base policy. The paper: three epochs of 100 problems, groups of 5; here 15 rounds of 20.
    """
    by = {"contrasts": Contrasts(most, blame=alone == "all"), "random": RandomRules(most), "endpoint": Endpoint(base_url, llm, most=most)}[
        propose
    ]
    steps = (Collect(OnPolicy(group)), Search("policy", propose=Revise(by, alone != "skipped")), Measure(library_table))
    return Recipe((Stage(steps, rounds=ROUNDS),), models={"policy": WithLibrary(size, library)})


def frozen() -> Recipe:
    """The same rollouts, and nothing is learnt from them."""
    return Recipe((Stage((Collect(OnPolicy(5)),), rounds=ROUNDS),))


SINGLE = {"group": 1, "prompts": 100}
claim(
    "training-free-grpo",
    "beats",
    "With frozen weights and 100 problems a library of rules from contrasts within groups of 5 raises held-out success above the frozen "
    "policy's, above rules at random and above rules from single rollouts.",
    arms={
        "group 5": Arm("group 5", "training-free-grpo"),
        "frozen": Arm("frozen", frozen),
        "random rules": Arm("random rules", "training-free-grpo", {"propose": "random"}),
        "group 1": Arm("group 1", "training-free-grpo", {**SINGLE, "alone": "successes"}),
        "group 1, failures too": Arm("group 1, failures too", "training-free-grpo", {**SINGLE, "alone": "all"}),
    },
    settings={"task": "tool-choice", "steps": 15, "prompts": 20, "eval_count": 1024},
    metric="success",
    seeds=10,
    budget="sampled rollouts (100 a round, of 100 problems)",
    stand_in="a script that compares which tool winners and losers chose, for a language model that says why; a table of cues and tools "
    "with rules as additive weights, for a language model with rules in its prompt; a choice of tools with twelve hidden heuristics",
    why="The script sees exactly the features that the heuristics are made of: that a language model finds and words such rules, and that "
    "a policy heeds them, is not tested. Its single rollouts lack a baseline that a language model may supply from what it knows.",
)
