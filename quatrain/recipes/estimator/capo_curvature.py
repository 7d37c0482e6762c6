from __future__ import annotations

from typing import Literal

from quatrain.estimator import Objective
from quatrain.experiments.claims import claim
from quatrain.knobs import Knob
from quatrain.parts.advantages import Return
from quatrain.parts.aggregations import Over
from quatrain.parts.curvature import WithinShifts
from quatrain.parts.selections import AtRandom, every_action
from quatrain.recipes.basics.dr_grpo import dr_grpo
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.draws import Draws
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe
from quatrain.training.shifts import Shifts


@recipe(
    "capo-curvature",
    family="estimator",
    title="Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
    paper="2510.00819",
)
def capo_curvature(
    base: Literal["grpo", "dr-grpo", "reinforce"] = "grpo",
    group: int = 8,
    policy_limit: float = 1e-4,
    objective_limit: float = 1e-2,
    rising: bool = False,
    optimiser: Literal["adam", "sgd"] = "adam",
    top: int = 100,
    normaliser: Literal["kept", "all"] = "kept",
    clip: float = 0.2,
    kl: float = 0.0,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """CAPO: tokens whose own update is predicted, to second order, to move the policy or its objective too far are left out of the loss.

    keep t iff m_F < δ_F and |m_H| < δ_H,  m_F = ½ η² (v·u)²,  m_H = η A v·u + ½ η² A [(v·u)² − uᵀ(diag π − ππᵀ)u],
    v = e_a − π, u = G h, G the step (over η) that Adam would make on the LM head for that token's gradient g = A v hᵀ alone

    base        grpo; dr-grpo; reinforce: the reward itself as advantage, in GRPO's loss.
    policy_limit, objective_limit  δ_F, δ_H (knobs too); the code has (1e-4, 1e-2) for grpo, (1e-3, 5e-4) for dr-grpo, (1e-5, 0.1)
                for reinforce. Infinite: exactly the base.
    rising      0 ≤ m_H < δ_H in place of |m_H|.       optimiser  sgd: G = g.       top  entries of the vocabulary; 0: all.
    normaliser  what is left out leaves the mean's normaliser as well, as in the code (``kept``), or not (``all``).

    Shifts are scored before every update, by the weights and Adam moments of then: exact for any epochs and minibatches. The code
    keeps moments of its own, of the mean gradient per row of the head; here they are those of the optimiser that trains, clipped
    norms and tied embeddings included. G = g as long as there are none, as in the code (a filter that began with Adam's sign(g) could
    leave out everything, for ever). A KL is left out with its token, as in the code. Inferred: that the paper's GRPO divides by the
    group's standard deviation (a setting of the code). No cap on logits, and no frozen head.
    """
    plain = dr_grpo(group, clip, epochs, minibatches) if base == "dr-grpo" else grpo(group, clip, 0.0, epochs, minibatches)
    plain = plain.but(advantage=Return()) if base == "reinforce" else plain
    plain = with_kl(plain, kl) if kl else plain
    kept = WithinShifts(Knob("policy_limit", policy_limit), Knob("objective_limit", objective_limit), rising)
    ((_, fit),) = plain.fits(Objective)
    shifts = Shifts(fit.loss.terms["policy"].advantage, optimiser, top, watch=kept)
    for name, term in fit.loss.terms.items():
        whole = Over(term.aggregation, every_action) if normaliser == "all" else term.aggregation
        plain = plain.but(name, where=kept, aggregation=whole)
    return plain.with_fit(edits=(shifts,))


def thinned() -> Recipe:
    """GRPO that leaves out 8 % of the tokens at random, as many as CAPO at most."""
    return grpo(kl=0.0).but(where=AtRandom(0.92)).with_collect(edits=(Draws(),))


claim(
    "capo-curvature",
    "beats",
    "With a learning rate five times as high and an eighth of the batch, CAPO ends above GRPO and Dr. GRPO, which lose what the model "
    "could do, and above GRPO without a random 8 % of its tokens.",
    arms={
        "capo": "capo-curvature:policy_limit=0.01,objective_limit=0.1",
        "grpo": "grpo:kl=0",
        "dr-grpo": "dr-grpo",
        "random": thinned,
    },
    settings={"task": "letters", "model": "tiny", "steps": 200, "prompts": 2, "lr": 2.5e-3, "eval_count": 512, "eval_every": 50},
    seeds=6,
    stand_in="a character model of 0.2 million parameters and letter problems for a model of 7 billion and mathematics; limits a hundred "
    "and ten times the paper's, since a step of a small model's head moves its logits that much further (m_H goes with the root of m_F)",
    why="The moments are those of the optimiser that trains, of a head that is tied to the embedding; the paper tracks the head's alone. "
    "The head's model does not see the layers below it, and Adam's step is as long with a tenth of the tokens left out as without: those "
    "that are left push as hard. No warm-up (the paper has one). One learning rate, five times the usual one, was tried; GRPO "
    "degrades at it but does not collapse.",
)
