from __future__ import annotations

from dataclasses import replace
from typing import Literal

from quatrain.estimator import Objective
from quatrain.experiments.arms import Arm
from quatrain.experiments.claims import claim
from quatrain.experiments.laboratories import MODES
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.aggregations import sequence_sum, token_mean
from quatrain.parts.control import after_first, first_action, trajectory_mean
from quatrain.recipes.basics.grpo import grpo, with_kl
from quatrain.rollout.modes import ModeReward
from quatrain.training.recipe import Recipe
from quatrain.training.registry import recipe


@recipe("thinkless-degrpo", family="estimator", title="Thinkless: LLM Learns When to Think", paper="2505.13379")
def thinkless_degrpo(
    group: int = 8,
    alpha: float = 1e-3,
    version: Literal["paper", "code"] = "paper",
    mark: str = "<think>",
    cost: float = 0.5,
    wrong: float = -1.0,
    clip: float = 0.2,
    kl: float = 0.001,
    epochs: int = 1,
    minibatches: int = 1,
) -> Recipe:
    """Decoupled GRPO: the first token chooses the mode and has a weight of its own, whatever the length of the response.

    L = 1/N Σ_i [α l_i0 + 1/T_i Σ_{t=1..T_i} l_it],  l_it = −min(r_it A_i, clip(r_it, 1±ε) A_i),  A_i = R_i − mean_group R

    T_i is the number of tokens after the control token. R = 1 for a correct short answer, 1 − cost for a correct one that begins with
    ``mark``, ``wrong`` else. In GRPO the control token's weight is 1/(T_i + 1): it favours the short mode, and is tiny for long ones.

    alpha    α.    version  ``code``: the released code's α·mean_i l_i0 + one mean over all tokens after control tokens of the batch;
             the same for equal lengths.
    kl       the weight of a k3 penalty to the initial policy, over all tokens, averaged as the responses are.

    → (T+1)/T times mean-centred GRPO for α = 1/T and T response tokens in every row. The warm-up on paired short and long answers is
    a stage of its own: ``sft().then(thinkless_degrpo())``. The KL's average is inferred.
    """
    mean = trajectory_mean if version == "paper" else token_mean
    plain = grpo(group, clip, kl=0.0, epochs=epochs, minibatches=minibatches).but(advantage=GroupRelative(scale="none"), aggregation=mean)
    plain = plain.with_collect(edits=(ModeReward(mark, cost, wrong),))
    plain = with_kl(plain, kl) if kl else plain
    ((_, fit),) = plain.fits(Objective)
    control = replace(fit.loss.terms["policy"], where=first_action, aggregation=sequence_sum, weight=alpha)
    return plain.but("policy", where=after_first).with_terms(control=control)


def vanilla() -> Recipe:
    """GRPO without the standard deviation, with the same rewards and KL: the control token has 1/(T + 1)."""
    centred = grpo(kl=0.0).but(advantage=GroupRelative(scale="none"))
    return with_kl(centred.with_collect(edits=(ModeReward("#"),)), 0.001)


TAUGHT = {"mark": "#", "alpha": 1.0}  # what the embedded model opens a worked answer with
ARMS = {
    "degrpo": Arm("degrpo", "thinkless-degrpo", TAUGHT),
    "code": Arm("code", "thinkless-degrpo", {**TAUGHT, "version": "code"}),
    "grpo": Arm("grpo", vanilla),
    "no cost": Arm("no cost", "grpo", {"kl": 0.001}),
}
COMMON = {
    "settings": MODES,
    "smoke": {"eval_samples": 2},
    "stand_in": "a character model of 0.2 million parameters, taught to open an answer with # and work it out, or with > and give it at "
    "once, by the toss of a coin, for a distilled model of 1.5 billion parameters warmed up on both modes; α = 1 at 2 to 14 characters "
    "for 0.001 at up to some ten thousand tokens, which makes α·T, the control token's weight against GRPO's, of the same order",
    "why": "The shares of easy and hard problems and α were chosen on seed 11. With a fifth of the problems easy DeGRPO (α = 0.2) and GRPO "
    "both ended with worked answers throughout. With three fifths α = 0.02, 0.05 and 0.2 did so too, 1 had them on hard problems alone, "
    "and so had GRPO, later. On the first five seeds GRPO collapsed once, which was inconclusive: the claims about the gap were then run "
    "on twenty.",
}


def arms(*names: str) -> dict[str, Arm]:
    return {name: ARMS[name] for name in names}


SAYS = "{} keeps worked answers for hard problems: their share there, less that on easy ones, ends higher than GRPO's with its rewards."
claim("thinkless-degrpo", "beats", SAYS.format("DeGRPO"), arms=arms("degrpo", "grpo"), metric="worked/gap", seeds=20, **COMMON)
SAYS = SAYS.format("DeGRPO as in the released code")
claim("thinkless-degrpo.code", "beats", SAYS, arms=arms("code", "grpo"), metric="worked/gap", seeds=20, **COMMON)
SAYS = "DeGRPO ends with fewer worked answers than GRPO that is rewarded for right answers alone."
claim("thinkless-degrpo.worked", "beats", SAYS, arms=arms("degrpo", "no cost"), metric="worked", higher=False, **COMMON)
SAYS = "DeGRPO's samples are right as often as those of GRPO that is rewarded for right answers alone, within 0.05."
claim("thinkless-degrpo.accuracy", "matches", SAYS, arms=arms("degrpo", "no cost"), metric="pass@1", margin=0.05, **COMMON)
