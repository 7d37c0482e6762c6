from __future__ import annotations

from typing import Literal

from quatrain.estimator import Term
from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.parts.selections import demonstrations, rollouts
from quatrain.recipes.basics.grpo import grpo
from quatrain.recipes.basics.sft import sft as imitation
from quatrain.rollout.continuations import Continuations
from quatrain.rollout.edits import AddDemonstrations
from quatrain.rollout.positions import Choice
from quatrain.rollout.sources import Demonstrations, OnPolicy
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("refine-nsp", family="estimator", title="Reinforced Fast Weights with Next-Sequence Prediction", paper="2602.16704")
def refine_nsp(
    positions: Choice = "entropy",
    reward: Literal["cosine", "binary", "hybrid"] = "cosine",
    rl: float = 0.2,
    sft: float = 1.0,
    chunks: int = 8,
    length: int = 5,
    temperature: float = 1.0,
    clip: float = 0.2,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Next-sequence prediction: a document is its own task. Read up to a place, go on for k tokens, be paid for going on as it did.

    L = rl·L_GRPO + sft·mean_t −log π(x_t | x_<t),   A_i = (R_i − mean)/std over the c places of one document
    cosine  R = 1/k Σ_j cos(h(x̂_{t+j}), h(x_{t+j})), last-layer states after the token;   binary  R = 1/k Σ_j 1[x̂_{t+j} = x_{t+j}]

    positions, temperature  one place t per chunk, p(t) ∝ exp(H_t/τ) of the next-token entropy pooled over k tokens; or evenly, or argmax,
                            argmin of the entropy.   chunks, length  c, k.
    reward, rl  mid-training: cosine, 0.2; post-training: hybrid, 0.2; training at test time: binary, 0.4.
    epochs, minibatches  updates per batch are their product; with one nothing is clipped.

    One rollout per place, so that places of different difficulty are compared with each other. → next-token prediction for rl = 0.
    From the released code: sft = 1; pooling is centred, over k + 1 tokens for an even k; argmax and argmin are of entropies that are not
    pooled. The code keeps 20 tokens from either end of a document and counts zeros beyond its ends; here k tokens are kept at the end.
    """
    source = Continuations(length, reward, positions, temperature, whole=OnPolicy(group=chunks))
    plain = grpo(chunks, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(where=rollouts, weight=rl)
    plain = plain.with_collect(source=source, edits=(AddDemonstrations(whole=True),))
    return plain.with_terms(sft=Term(where=demonstrations, weight=sft))


def next_token() -> Recipe:
    """Continued training by next-token prediction on the same documents."""
    return imitation().with_collect(source=Demonstrations(whole=True))


LABORATORY = {
    "settings": {"task": "letters:recall?levels=3", "model": "tiny-delta", "steps": 60, "prompts": 8, "eval_count": 512, "eval_every": 30},
    "stand_in": "two layers of DeltaNet, 0.09 million parameters, and documents of 75 characters for models of 0.8 and 1.3 billion and "
    "documents of 16 thousand tokens",
}
claim(
    "refine-nsp",
    "beats",
    "Mid-training by next-sequence prediction ends at a higher accuracy of recall than next-token prediction on the same documents.",
    arms={"cosine": "refine-nsp", "next token": Arm("next token", next_token)},
    why="Of a document's later two thirds two characters of three can be known, and nothing of its first: the places differ in what can "
    "be known at all, and their rewards with them. Documents are equally many; the rollouts cost several times as much time.",
    **LABORATORY,
)
claim(
    "refine-nsp.positions",
    "beats",
    "Places drawn by entropy end at a higher accuracy of recall than places drawn evenly, than those of most and of least entropy.",
    arms={choice: f"refine-nsp:positions={choice}" for choice in ("entropy", "uniform", "argmax", "argmin")},
    why="As for refine-nsp: in these documents entropy is highest where nothing can be learnt.",
    **LABORATORY,
)
