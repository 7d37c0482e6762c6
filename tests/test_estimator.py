"""The equation: hand numbers, what it refuses, and the gradients of KL penalties by exact enumeration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.estimator import NonFiniteError, Objective, Term
from quatrain.parts.advantages import KL, Constant, GroupRelative, PairLogistic, Return
from quatrain.parts.aggregations import PerGroup, sequence_sum
from quatrain.parts.bounds import Clip
from quatrain.parts.denominators import Ratio
from quatrain.parts.gates import Solved
from quatrain.parts.likelihoods import Divergence, Entropy, LogProb
from quatrain.parts.needs import needs
from quatrain.parts.selections import rollouts
from tests.toy import TabularPolicy, assert_same, plain_logp

LOGP, ENTROPY = LogProb(), Entropy()


def tiny(**columns: Tensor) -> Batch:
    """Two trajectories: two actions and one; the second's padding is NaN."""
    mask = torch.tensor([[True, True], [True, False]])
    return Batch(mask, torch.zeros(2, 2), columns=columns, rows={"reward": torch.tensor([1.0, 3.0]), "prompt": torch.tensor([0, 0])})


# -- by hand -----------------------------------------------------------------------------------------------------------
def test_coefficients_and_loss_by_hand():
    logp = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.0, -2.0 - math.log(2)], [-3.0 + math.log(2), math.nan]], dtype=torch.float64)
    term = Term(GroupRelative(scale="none"), Ratio("current", "old"), Clip(0.3, 0.3), aggregation=sequence_sum, weight=0.5)
    estimate = Objective({"policy": term})(tiny(old_logp=old), {LOGP: logp})
    found = estimate.terms["policy"]
    # ratios 1, 2 | ½; advantages −1 | +1: only the second trajectory's ½ < 0.7 with A > 0 passes; A < 0 lets 1 and 2 pass.
    assert found.log_ratio.exp()[found.where].tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert found.advantage[found.where].tolist() == [-1.0, -1.0, 1.0]
    assert found.factor[found.where].tolist() == pytest.approx([1.0, 2.0, 0.5])
    assert found.coefficient.tolist() == [pytest.approx([-0.25, -0.5]), [pytest.approx(0.125), 0.0]]
    assert estimate.loss.item() == pytest.approx(-(-0.25 * -1 - 0.5 * -2 + 0.125 * -3))
    estimate.loss.backward()
    assert torch.equal(-logp.grad, found.coefficient) and not found.coefficient.requires_grad


def test_terms_add_up_and_each_has_its_own_statistic():
    logp, entropy = (torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True) for _ in range(2))
    both = Objective({"policy": Term(Constant(2.0)), "entropy": Term(likelihood=ENTROPY, weight=0.3)})
    assert both.statistics() == [LOGP, ENTROPY] and both.models() == set()
    estimate = both(tiny(), {LOGP: logp, ENTROPY: entropy})
    assert estimate.loss.item() == pytest.approx(-(2.0 * -6 + 0.3 * -6) / 3)
    estimate.loss.backward()
    assert logp.grad[0, 0].item() == pytest.approx(-2 / 3) and entropy.grad[0, 0].item() == pytest.approx(-0.1)


def test_a_selection_is_inside_the_mean_and_within_the_mask():
    """A selection that claims the padding gets only the actions of it."""
    term = Term(where=lambda batch: torch.tensor([[False, True], [True, True]]))
    estimate = Objective({"policy": term})(tiny(), {LOGP: torch.zeros(2, 2, requires_grad=True)})
    assert estimate.terms["policy"].coefficient.tolist() == [[0.0, 0.5], [0.5, 0.0]]


def test_a_selection_of_rows():
    term = Term(where=lambda batch: batch["reward"] > 2)
    assert Objective({"policy": term})(tiny(), {LOGP: torch.zeros(2, 2)}).terms["policy"].where.tolist() == [[False, False], [True, False]]


def test_zero_advantage_or_weight_beats_an_infinite_ratio():
    """0·∞ is NaN; a closed gate is 0."""
    batch = tiny(old_logp=torch.full((2, 2), -math.inf))
    for term in (Term(Constant(0.0), Ratio("current", "old")), Term(denominator=Ratio("current", "old"), weight=0.0)):
        assert not Objective({"policy": term})(batch, {LOGP: torch.zeros(2, 2)}).terms["policy"].coefficient.any()


def test_live_parts_see_the_current_policy():
    @needs("current_entropy")
    def surprising(batch: Batch) -> Tensor:
        return batch["current_entropy"] > 1.0

    @needs("current_logp")
    def confident(batch: Batch) -> Tensor:
        return batch["current_logp"].exp()

    objective = Objective({"policy": Term(where=surprising, weight=confident)})
    assert objective.live and objective.statistics() == [LOGP, ENTROPY] and objective.needs() == set()
    scores = {LOGP: torch.tensor([[0.5, 0.5], [0.25, 1.0]]).log(), ENTROPY: torch.tensor([[0.0, 2.0], [3.0, 9.0]])}
    found = objective(tiny(), scores).terms["policy"].coefficient
    assert found.tolist() == [[0.0, 0.25], [0.125, 0.0]]


def test_which_objectives_need_a_pass_before_the_update():
    assert Objective({"policy": Term(PairLogistic())}).live
    assert not Objective({"policy": Term(), "kl": Term(KL())}).live  # read action by action
    assert not Objective({"policy": Term(denominator=Ratio("current", "old"))}).live


def test_only_rows_with_a_possible_coefficient_are_active():
    batch = tiny(origin=torch.tensor([[0, 0], [1, 0]])).with_rows(reward=torch.tensor([1.0, 0.0]), prompt=torch.tensor([0, 1]))

    def active(*terms: Term) -> list[bool]:
        objective = Objective({str(i): term for i, term in enumerate(terms)})
        return objective.active(objective.finalise(objective.prepare(batch))).tolist()

    assert active(Term()) == [True, True]
    assert active(Term(where=rollouts)) == [True, False]
    assert active(Term(Return())) == [True, False]
    assert active(Term(weight=Solved(invert=True))) == [False, True]
    assert active(Term(where=rollouts), Term(weight=Solved(invert=True))) == [True, True]
    assert active(Term(KL())) == [True, True]


def test_what_is_measured():
    logp = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    old = torch.tensor([[2.0, 1.0], [0.5, math.nan]], dtype=torch.float64).reciprocal().log()
    term = Term(Constant(1.0), Ratio("current", "old"), Clip(0.2, 0.2))
    measured = Objective({"policy": term})(tiny(old_logp=old), {LOGP: logp}).measures()
    mean = {name: float(total) / (1.0 if count is None else float(count)) for name, (total, count) in measured.items()}
    assert mean["ratio"] == pytest.approx((2 + 1 + 0.5) / 3) and mean["ratio/max"] == pytest.approx(2.0)
    assert mean["clipped"] == pytest.approx(1 / 3) and mean["policy/coefficient"] == pytest.approx((1 + 0.5) / 3)
    assert mean["kl"] == pytest.approx(((1 - math.log(2)) + 0 + (-0.5 + math.log(2))) / 3)
    assert measured["loss"][1] is None and measured["policy/coefficient"][1] is None  # parts of an update add up


# -- what is refused ---------------------------------------------------------------------------------------------------
def test_an_objective_has_a_term():
    with pytest.raises(QuatrainError, match="at least one term"):
        Objective({})


def test_a_missing_column_names_the_line_and_the_provider():
    objective = Objective({"policy": Term(bound=Clip(on=Ratio("current", "old")), aggregation=PerGroup(by="bundle"))})
    with pytest.raises(QuatrainError) as error:
        objective.check({"bundle", "reward"})
    said = str(error.value)
    assert "'old_logp' is needed by the bound of term 'policy' (Clip(" in said and "OnPolicy" in said and "bundle, reward" in said
    with pytest.raises(QuatrainError, match="'bundle' is needed by the aggregation of term 'policy'"):
        objective.check({"old_logp"})
    objective.check({"old_logp", "bundle"})
    assert objective.needs() == {"old_logp", "bundle"}
    assert Objective({"policy": Term(likelihood=Divergence("expert"))}).models() == {"expert"}


@pytest.mark.parametrize(
    ("part", "value"),
    [("advantage", torch.zeros(3)), ("advantage", torch.zeros(2, 5)), ("weight", torch.zeros(2, 2, 2)), ("where", torch.ones(1))],
)
def test_a_part_of_the_wrong_shape_is_named(part: str, value: Tensor):
    with pytest.raises(QuatrainError, match=f"the {part} of term 'kl' has the wrong shape"):
        Objective({"kl": Term(**{part: lambda batch: value})}).prepare(tiny())


def test_a_coefficient_that_is_not_finite_names_its_term():
    batch = tiny(old_logp=torch.full((2, 2), -200.0))
    objective = Objective({"policy": Term(), "far": Term(Constant(-1.0), Ratio("current", "old"), Clip())})
    with pytest.raises(NonFiniteError, match="term 'far'") as error:
        objective(batch, {LOGP: torch.zeros(2, 2)})
    assert "bounded ratio: 3 of 3 not finite" in str(error.value) and "log-ratio: 0 of 3 not finite, otherwise at most 200" in str(
        error.value
    )
    with pytest.raises(NonFiniteError, match="advantage: 1 of 3"):
        Objective({"policy": Term(lambda batch: torch.tensor([[1.0, math.nan], [1.0, 1.0]]))})(tiny(), {LOGP: torch.zeros(2, 2)})


def test_a_selected_action_of_probability_zero_is_not_finite():
    with pytest.raises(NonFiniteError, match="the loss is not finite"):
        Objective({"policy": Term()})(tiny(), {LOGP: torch.tensor([[0.0, -math.inf], [0.0, 0.0]])})


def test_an_unselected_action_of_probability_zero_is_harmless():
    logp = torch.tensor([[0.0, -math.inf], [0.0, math.nan]], requires_grad=True)
    estimate = Objective({"policy": Term(where=lambda batch: torch.tensor([[True, False], [True, True]]))})(tiny(), {LOGP: logp})
    estimate.loss.backward()
    assert logp.grad.tolist() == [[-0.5, 0.0], [-0.5, 0.0]]


# -- KL penalties, exactly ---------------------------------------------------------------------------------------------
ACTIONS = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # every trajectory of two actions
STATE = torch.stack([torch.zeros(9, dtype=torch.long), 1 + ACTIONS[:, 0]], 1)  # the second depends on the first


def two_steps(stale: bool = False) -> tuple[TabularPolicy, TabularPolicy, TabularPolicy, Batch]:
    """(policy, reference, sampler, the batch of all nine trajectories weighed by the sampler's probability)."""
    g = torch.Generator().manual_seed(1)
    policy, reference, other = (TabularPolicy(torch.randn(4, 3, dtype=torch.float64, generator=g)) for _ in range(3))
    sampler = other if stale else policy
    bare = Batch(torch.ones(9, 2, dtype=torch.bool), ACTIONS, columns={"state": STATE})
    logp = {name: plain_logp(model.table, bare).detach() for name, model in (("reference", reference), ("behaviour", sampler))}
    batch = bare.with_columns(**{f"{name}_logp": value for name, value in logp.items()})
    return policy, reference, sampler, batch.with_rows(chance=logp["behaviour"].sum(1).exp())


def expected_gradient(policy: TabularPolicy, batch: Batch, term: Term) -> Tensor:
    """The exact expectation of the descent direction of one term, per trajectory summed over its actions."""
    term = Term(
        term.advantage,
        term.denominator,
        term.bound,
        aggregation=lambda batch, where: where.double(),
        weight=lambda batch: batch["chance"],
    )
    loss = Objective({"kl": term})(batch, policy.score(batch, [LOGP])).loss
    return torch.autograd.grad(loss, policy.table)[0]


def frozen_state_kl(policy: TabularPolicy, reference: TabularPolicy, sampler: TabularPolicy, kind: str) -> Tensor:
    """Σ_s d(s)·KL at s with d the sampler's state distribution, held."""
    first = sampler.table[0].softmax(-1).detach()
    visits = torch.cat([torch.ones(1, dtype=torch.float64), first])
    log_p, log_q = policy.table.log_softmax(-1), reference.table.detach().log_softmax(-1)
    reverse, forward = (log_p.exp() * (log_p - log_q)).sum(-1), (log_q.exp() * (log_q - log_p)).sum(-1)
    return (visits * (reverse if kind == "reverse" else forward)).sum()


def sequence_kl(policy: TabularPolicy, batch: Batch) -> Tensor:
    """Σ_τ π(τ) log π(τ)/π_ref(τ), states and all."""
    logp = plain_logp(policy.table, batch).sum(1)
    return (logp.exp() * (logp - batch["reference_logp"].sum(1))).sum()


def slope(value: Tensor, policy: TabularPolicy) -> Tensor:
    return torch.autograd.grad(value, policy.table)[0]


def test_k1_as_a_penalty_has_mean_zero():
    policy, _, _, batch = two_steps()
    assert expected_gradient(policy, batch, Term(KL(kind="k1"))).abs().max() < 1e-15


@pytest.mark.parametrize(("kind", "aim"), [("k2", "reverse"), ("k3", "forward")])
def test_k2_and_k3_as_penalties_are_the_reverse_and_the_forward_kl_of_frozen_states(kind: str, aim: str):
    policy, reference, sampler, batch = two_steps()
    found = expected_gradient(policy, batch, Term(KL(kind=kind)))
    assert_same(found, slope(frozen_state_kl(policy, reference, sampler, aim), policy))
    other = "forward" if aim == "reverse" else "reverse"
    for wrong in (frozen_state_kl(policy, reference, sampler, other), sequence_kl(policy, batch)):
        assert (found - slope(wrong, policy)).abs().max() > 1e-2  # neither the other one nor the sequence KL


def test_return_to_go_of_k1_in_the_reward_is_the_sequence_kl():
    policy, _, _, batch = two_steps()
    cost = batch["reference_logp"] - plain_logp(policy.table, batch).detach()
    ends = torch.tensor([[False, True]]).expand(9, 2)
    batch = batch.with_columns(rewards=cost, terminated=ends).with_rows(reward=cost.sum(1))
    found = expected_gradient(policy, batch, Term(Return()))
    assert_same(found, slope(sequence_kl(policy, batch), policy))
    immediate = expected_gradient(policy, batch, Term(lambda batch: batch["rewards"]))
    assert (found - immediate).abs().max() > 1e-2  # the reward of the step alone is k2: frozen states


def test_off_policy_the_ratio_goes_with_the_penalty():
    """ρ·k3 with ρ differentiated too is ρ·l per sample: with a ratio per action, the reverse KL at the sampler's states."""
    policy, reference, sampler, batch = two_steps(stale=True)
    found = expected_gradient(policy, batch, Term(KL(kind="k2"), Ratio("current", "behaviour")))
    logp = plain_logp(policy.table, batch)
    ratio, gap = (logp - batch["behaviour_logp"]).exp(), batch["reference_logp"] - logp
    assert_same(found, slope((batch["chance"][:, None] * ratio * (gap.exp() - 1 - gap)).sum(), policy))
    assert_same(found, slope(frozen_state_kl(policy, reference, sampler, "reverse"), policy))
