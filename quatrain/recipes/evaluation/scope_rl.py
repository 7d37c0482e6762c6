from __future__ import annotations

from quatrain.evaluation.off_policy.table import OffPolicyTable
from quatrain.experiments.claims import claim
from quatrain.experiments.miniatures.off_policy import RELATIVES, errors, tails, told_apart
from quatrain.knobs import Knob
from quatrain.losses.fitted_q import FittedQ
from quatrain.rollout.logged import Logged
from quatrain.training.candidates import Candidate, ChoiceValues, TargetProbabilities
from quatrain.training.recipe import Recipe, Stage
from quatrain.training.registry import recipe
from quatrain.training.rules import AdamW
from quatrain.training.steps import Collect, Fit, Measure

TITLE = "SCOPE-RL: A Python Library for Offline Reinforcement Learning and Off-Policy Evaluation"


@recipe("scope-rl", family="evaluation", title=TITLE, paper="2311.18206")
def scope_rl(discount: float = 1.0, k: int = 3, alpha: float = 0.25, interval: str = "student", epochs: int = 12) -> Recipe:
    """Off-policy evaluation and selection: what candidate policies are worth, from another policy's log. The policy does not learn.

    Ĵ_TIS = 1/n Σ_i w_{0:T−1} Σ_t γ^t r_t,   Ĵ_DR = 1/n Σ_i Σ_t γ^t [w_{0:t} (r_t − Q̂) + w_{0:t−1} E_π Q̂],   w = Π π/π_b
    SharpeRatio@k = (best@k − J(π_b)) / std@k of the k policies that an estimator ranks best

    Collect the log of the behaviour policy; fit Q̂ of six candidates to it (fitted Q evaluation); measure: sixteen estimators of each
    candidate's value with intervals, the distribution of its return (mean, variance, CVaR_α, quantiles), and what choosing by each
    estimator is worth. Marginal ratios are tabular. Candidates are relatives of the behaviour policy, from opposite to far sharper;
    the paper trains its own by offline reinforcement learning. The library's code cuts SharpeRatio@k off at 0, as here.

    An interval is that of the mean over the log: it knows nothing of a bias, which is all that the direct method has wrong.

    On the behaviour policy itself every weight is 1 and all but the direct method are the mean return.
    """
    names = tuple(f"candidate{number}" for number in range(len(RELATIVES)))
    candidates = {
        name: Candidate(sharpness=sharp, noise=noise, seed=number)
        for number, (name, (sharp, noise)) in enumerate(zip(names, RELATIVES, strict=True))
    }
    rounds = Knob("steps", 20)
    steps = (
        Collect(Logged(), edits=(TargetProbabilities(names),)),
        Fit(FittedQ(discount), model="q", rule=AdamW(lr=Knob("lr", 0.1), clip_norm=0.0), epochs=epochs),
        Measure(OffPolicyTable(names, discount=discount, interval=interval, k=k, alpha=alpha), every=rounds),
    )
    return Recipe((Stage(steps, rounds=rounds),), models={**candidates, "q": ChoiceValues(heads=len(names))})


STAND_IN = "a bidding table of 18 states with exact values for RTBGym; relatives of the behaviour policy for candidates trained offline"
claim(
    "scope-rl",
    "beats",
    "Over 20 steps the doubly robust and the marginal estimator have a lower mean squared error than trajectory-wise importance sampling.",
    arms=("dr, marginal", "tis"),
    measure=errors,
    settings={"horizon": 20, "trajectories": 500},
    smoke={"horizon": 5, "trajectories": 50},
    metric="log10 mean squared error, the worse of the two",
    higher=False,
    seeds=20,
    stand_in=STAND_IN,
    why="Where values and marginal ratios are tabular and fitted to the same log, sam-dr, sam-is and the direct method are one number: "
    "that the correction helps a wrong value model is shown by the unit tests and by dr alone.",
)
claim(
    "scope-rl.sharpe",
    "detects",
    "Of two estimators with one squared error and mirrored ranks SharpeRatio@3 prefers the one that misses the best policy to the one "
    "that takes the worst for the best.",
    measure=told_apart,
    smoke={"draws": 20},
    metric="score",
    chance=0.5,
    seeds=20,
    stand_in="exact values of random policies of the bidding table; two estimators wrong by construction",
    why="Both metrics that it is compared with are at 0.5 by construction. With estimates from data the pairs are rarely tied exactly.",
)
claim(
    "scope-rl.cvar",
    "matches",
    "The doubly robust estimate of the return's distribution gives its CVaR at 25 % to a tenth of a standard deviation of the return.",
    arms=("sn-tdr", "exact"),
    measure=tails,
    settings={"horizon": 7, "trajectories": 500},
    smoke={"horizon": 3, "trajectories": 50},
    metric="CVaR 25 % in standard deviations of the return, mean over candidates",
    margin=0.1,
    seeds=20,
    stand_in=STAND_IN,
    why="A mean over six candidates: errors of opposite sign cancel, and the candidate opposite to the behaviour policy is the worst.",
)
