from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.losses.flow import Fitted, FlowMatching
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.basics.ppo import ppo
from quatrain.rollout.draws import Draws
from quatrain.rollout.sources import Demonstrations
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.rules import AdamW
from quatrain.training.steps import Collect, Fit


@recipe("adaflow", family="generative", title="AdaFlow: Imitation Learning with Variance-Adaptive Flow-Based Policies", paper="2402.04292")
def adaflow(variant: Literal["one-stage", "two-stage", "plain"] = "one-stage") -> Recipe:
    """AdaFlow: a rectified flow that imitates, and knows where it is straight.

    x_t = t·x₁ + (1 − t)·x₀,  u = x₁ − x₀,  x₀ ~ N(0, I), t ~ U[0, 1];
    L = E[‖u − v(x_t, t|s)‖²/(2σ²(x_t, t|s)) + log σ(x_t, t|s)]                                   (Hu et al. 2024, eq. 9)

    σ² becomes the conditional variance of u, the defect of straightness at that point. The policy then steps by
    min(max(η/σ, 1/N), 1 − t) (algorithm 1; ``models.solver``): η is its ``tolerance``, N its ``steps``.

    variant  ``one-stage``: both heads at once. ``two-stage``: the velocity by plain flow matching, then σ of a velocity that stays.
             ``plain``: the velocity alone, a rectified flow (or, on the path ``cosine``, a diffusion) policy.

    One action per state → σ = 0 and one Euler step; tolerance = ∞ → a one-step flow, the mean action; tolerance = 0 → N equal steps.
    The policy is ``model=flow``; its options follow a question mark: ``model=flow?tolerance=0.2&steps=20``. What it has learnt,
    ``grpo`` and ``ppo`` go on with as they are: each denoising step is an action.
    """
    fitted: dict[str, tuple[Fitted, ...]] = {"one-stage": ("both",), "two-stage": ("velocity", "spread"), "plain": ("velocity",)}
    collect = Collect(Demonstrations(), edits=(Draws(),))
    return Recipe(tuple(Stage((collect, Fit(FlowMatching(part))), name=part) for part in fitted[variant]))


def then(recipe: Recipe) -> Recipe:
    """Plain imitation, then that recipe with rounds and a learning rate of its own."""
    (stage,) = recipe.with_fit(rule=AdamW(lr=Knob("rl_lr", 3e-4))).stages
    return adaflow("plain").then(replace(recipe, stages=(replace(stage, rounds=Knob("rl_steps", 40)),)))


def imitation_then_grpo() -> Recipe:
    return then(grpo(kl=0.0))


def imitation_then_ppo() -> Recipe:
    return then(ppo(epochs=4))


ARMS = {
    "adaflow": Arm("adaflow", "adaflow", {"variant": "two-stage", "model": "flow?tolerance=0.2&steps=20"}),
    "one-step flow": Arm("one-step flow", "adaflow", {"variant": "plain", "model": "flow?tolerance=inf"}),
    "20-step flow": Arm("20-step flow", "adaflow", {"variant": "plain", "model": "flow?tolerance=0&steps=20"}),
    "20-step DDIM": Arm("20-step DDIM", "adaflow", {"variant": "plain", "model": "flow?path=cosine&tolerance=0&steps=20"}),
}
COMMON = {
    "settings": {"task": "plane:route", "steps": 400, "prompts": 24, "lr": 3e-3, "eval_count": 128, "eval_samples": 8, "eval_every": 0}
    | {"save_every": 0},
    "stand_in": "two dimensions, one obstacle with two ways round it and a scripted expert for the paper's manipulation tasks; an MLP",
    "why": "The arms share the velocity: AdaFlow is the two-stage variant, its second 400 updates are the spread's. In one stage of as "
    "few updates the flow succeeded less often. Laboratory and settings were chosen while looking at one seed.",
}
claim(
    "adaflow",
    "beats",
    "Where experts take either of two ways, AdaFlow succeeds more often than a flow of one step.",
    arms={name: ARMS[name] for name in ("adaflow", "one-step flow")},
    metric="success",
    **COMMON,
)
LONG = {name: ARMS[name] for name in ("adaflow", "20-step flow", "20-step DDIM")}
SAYS = "AdaFlow succeeds as often as a flow or a diffusion policy of twenty steps, within 0.1."
claim("adaflow.matches", "matches", SAYS, arms=LONG, metric="success", margin=0.1, **COMMON)
SAYS = "AdaFlow evaluates its network less often per decision than the policies of twenty steps."
claim("adaflow.nfe", "beats", SAYS, arms=LONG, metric="evaluations", higher=False, **COMMON)
START = {"model": "flow?tolerance=0&steps=5&chain=5&noise=0.5"}
for name, other in (("grpo", imitation_then_grpo), ("ppo", imitation_then_ppo)):
    claim(
        f"adaflow.{name}",
        "beats",
        f"The unchanged {name} recipe lifts an imitating flow policy above where imitation left it, by its denoising steps.",
        arms={name: Arm(name, other, START), "imitation": Arm("imitation", "adaflow", {"variant": "plain", **START})},
        settings={**COMMON["settings"], "task": "plane:route?demonstrations=20", "steps": 100},
        smoke={"rl_steps": 2},
        metric="success",
        stand_in=COMMON["stand_in"],
        why="Twenty demonstrations, so that imitation leaves room. The imitation arm gets no further updates: this does not show that "
        "reward beats more imitation.",
    )
