from __future__ import annotations

from typing import Literal

from quatrain.errors import QuatrainError
from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import LETTERS
from quatrain.experiments.miniatures.probe_noise import noises
from quatrain.parts.advantages import LeaveOneOut
from quatrain.parts.aggregations import token_mean
from quatrain.parts.crossed import CrossBaseline
from quatrain.parts.tracked import Above
from quatrain.recipes.basics.grpo import grpo
from quatrain.training.entropies import ScoreEntropy
from quatrain.training.probe import ProbeValue
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe(
    "poise",
    family="estimator",
    title="Your Language Model is Its Own Critic: Reinforcement Learning with Value Estimation from Actor's Internal States",
    paper="2605.07579",
)
def poise(
    group: int = 2,
    baseline: Literal["probe", "self", "others"] = "probe",
    layers: int = 1,
    components: int = 32,
    penalty: float = 1.0,
    window: int = 1024,
    clip: float = 0.2,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Policy Optimization with Internal State value Estimation: what the policy's states make of a twin is the baseline.

    A_1 = r_1 − g(z_2),  A_2 = r_2 − g(z_1) for two rollouts of a prompt (more: the mean of g over the others); PPO's clip, token mean

    z is the policy's hidden states at the prompt's end and their mean over the answer, beside mean, deviation and quantiles of the
    tokens' entropies; g principal components and a ridge regression on (z_1 → r_2), (z_2 → r_1) of the newest trajectories, refit after
    every batch, whose advantages it has not seen. z_2 depends on y_2, which given the prompt is independent of y_1: no bias.

    baseline    ``self``: g(z_i), which is biased; ``others``: r_j itself, RLOO.
    layers, components, penalty, window  of ``ProbeValue``; window counts trajectories.

    → REINFORCE with a constant baseline where the probe is constant, as it is (½) for the first batch. Unbiased to the letter with a sum
    over tokens. No code was released: clip, mean, sizes and the first batch are inferred, advantages are not standardised, and there is
    one probe for all domains. Not GRPO's z-score: a prompt whose rollouts all succeed still says something.
    """
    if group < 2:
        raise QuatrainError("a rollout's baseline is a sibling's", given=f"group={group}", expected="2 or more")
    advantage = {"probe": CrossBaseline(), "self": Above("probe_value"), "others": LeaveOneOut()}[baseline]
    plain = grpo(group, clip, 0.0, epochs, minibatches).but(advantage=advantage, aggregation=token_mean)
    edits = (ScoreEntropy(), ProbeValue(layers, components, penalty, window))
    return plain if baseline == "others" else plain.with_collect(edits=edits)


def token_grpo() -> Recipe:
    """GRPO of eight rollouts and no KL, with the same mean over tokens."""
    return grpo(8, kl=0.0).but(aggregation=token_mean)


claim(
    "poise",
    "beats",
    "At equally many sampled tokens, two rollouts of many prompts with the probe's crossed baseline end higher than GRPO's eight of few, "
    "and than two whose baseline is the other's reward.",
    arms={
        "poise": "poise:prompts=64",
        "grpo": Arm("grpo", token_grpo),
        "rloo": "poise:baseline=others,prompts=64",
    },
    settings=LETTERS,
    budget="tokens",
    stand_in="a character model of 0.2 million parameters and letter problems of five levels for Qwen3-4B and a distilled 1.5B on "
    "mathematics; 128 answers per update in every arm",
    why="Letter answers are a few tokens: the forward pass that reads the states is as long as sampling is cheap, and is not charged.",
)
claim(
    "poise.variance",
    "beats",
    "At equally many rollouts the crossed baseline of two gives a less noisy gradient than GRPO of eight, and than the other's reward.",
    arms=("poise", "grpo", "rloo"),
    measure=noises,
    smoke={"warm": 1, "batches": 3, "prompts": 2},
    metric="log10 relative variance",
    higher=False,
    stand_in="the embedded character model on letter problems after a few updates, 128 rollouts per gradient",
    why="The paper's variance is that of whole training runs. A value is not the baseline of least variance: where failures are the "
    "surprising answers, with large gradients, no baseline at all may be less noisy than any of these (measured too, as ``none``).",
)
