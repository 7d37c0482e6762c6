from __future__ import annotations

from typing import Literal

from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import MODES
from quatrain.parts.bounds import Clip
from quatrain.parts.modes import HybridGroup
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.forced import BothModes, HybridAccuracy, Modes
from quatrain.rollout.sources import OnPolicy
from quatrain.training.columns import Score
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("hgpo", family="estimator", title="Think Only When You Need with Large Hybrid-Reasoning Models", paper="2505.14631")
def hgpo(
    group: int = 4,
    alpha: float = 1.0,
    margin: float = 0.2,
    within: Literal["mode", "prompt"] = "mode",
    think: str = "<think>",
    direct: str = "<no_think>",
    clip: float = 0.5,
    kl: float = 0.001,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Hybrid Group Policy Optimization: every prompt in both modes; which mode won goes to the mode's token, the best of each to all.

    J = 1/N Σ_i 1/|o_i| Σ_t min(r_t A_t, clip(r_t, 1±ε) A_t) − β KL,   A_t = z(r_intra) + 1[t is the mode token] α z(r_inter),
    r_intra = 1[best of its mode],   r_inter = 1[its mode = argmax {R̄_think, R̄_direct + δ}],   R̄: mean reward of a mode's N/2 samples

    alpha, margin  α and δ.       think, direct  the two openings, a token each; a task without texts has one mode.
    within         r_intra's z-score is over the samples of its ``mode``, or over the ``prompt``'s: the text has "the group".

    → per-response GRPO on r_intra for α = 0. ``modes/accuracy`` is logged: the hybrid accuracy on the training prompts. From
    restatements of the paper. Inferred: all that tie for best are best; a tie of the modes is direct's. The first stage, fine-tuning
    on both formats, is ``sft().then(hgpo())``.
    """
    plain = grpo(group, kl=0.0, epochs=epochs, minibatches=minibatches).but(
        advantage=HybridGroup(alpha, margin, within), bound=Clip(clip, clip)
    )
    edits = (Modes(), Score("policy", "old_logp"), HybridAccuracy(margin))
    forced = plain.with_collect(source=BothModes(OnPolicy(group=group), (think, direct)), edits=edits)
    return with_kl(forced, kl) if kl else forced


def marked(alpha: float = 1.0) -> Recipe:
    """With the openings that the embedded model was taught, and GRPO's default number of samples."""
    return hgpo(group=8, alpha=alpha, think="#", direct=">")


def no_choice() -> Recipe:
    """Forced into both modes, learning nothing of which is better."""
    return marked(alpha=0.0)


ARMS = {"hgpo": Arm("hgpo", marked), "grpo": Arm("grpo", "grpo", {"kl": 0.001}), "no choice": Arm("no choice", no_choice)}
COMMON = {
    "settings": MODES,
    "smoke": {"eval_samples": 2},
    "stand_in": "a character model of 0.2 million parameters, taught to open an answer with # and work it out, or with > and give it at "
    "once, by the toss of a coin whatever the problem, for models of 1.5 and 7 billion fine-tuned on thinking for hard and direct answers "
    "for easy queries; the paper's arms RFT and DPO are left out",
    "why": "GRPO is rewarded for right answers alone and pays nothing for length; the paper compares with models that are fine-tuned on "
    "both formats, which the arm without choice is nearest to. The shares of easy and hard problems were chosen on seed 11, by the arms "
    "of thinkless-degrpo.",
}
SAYS = (
    "More of HGPO's samples than of GRPO's, which chooses for itself, and of HGPO's that learns no choice, are in the mode that pays for "
    "their problem (hybrid accuracy)."
)
claim("hgpo", "beats", SAYS, arms=ARMS, metric="hybrid accuracy", **COMMON)
SAYS = "HGPO ends with shorter answers to easy problems than GRPO, and than HGPO that learns no choice."
LONG = " Without choice answers ran long on one seed of five (10.5 characters for 2.8), which widens the interval against it beyond 0."
TOKENS = COMMON | {"why": COMMON["why"] + LONG}
claim("hgpo.tokens", "beats", SAYS, arms=ARMS, metric="characters/easy", higher=False, **TOKENS)
SAYS = "HGPO's samples are right as often as GRPO's, within 0.05."
claim("hgpo.accuracy", "matches", SAYS, arms={name: ARMS[name] for name in ("hgpo", "grpo")}, metric="pass@1", margin=0.05, **COMMON)
