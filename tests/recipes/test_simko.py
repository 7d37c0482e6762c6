"""simko: autograd of the loss with candidates' ratios as the paper writes it; candidates by hand; forks; limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.distributions import Categorical, Gaussian
from quatrain.parts.aggregations import token_mean
from quatrain.parts.forks import ForkWeight, row_quantile
from quatrain.parts.likelihoods import Candidates, Entropy, LogProb
from quatrain.training.registry import make
from tests.recipes.test_grpo import z_scores
from tests.toy import Case, TabularPolicy, assert_same, autograd, case, gradient


def mixed_ratio(here: Case, count: int, smooth: float, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """(r̃ [N, T] with its gradient, w, whether the likeliest was taken), written as in the paper."""
    log_p = here.policy.table[here.batch["state"]].log_softmax(-1)
    old = here.others["old"].table.detach()[here.batch["state"]].log_softmax(-1)
    entropy, w = -(log_p.exp() * log_p).sum(-1).detach(), torch.zeros(here.batch.shape, dtype=torch.float64)
    for row, mask in enumerate(here.batch.mask):
        w[row] = (entropy[row] > torch.quantile(entropy[row][mask], level)) & mask
    top = log_p.detach().topk(count).indices
    r_k = (log_p.gather(-1, top) - old.gather(-1, top)).exp()
    r = here.ratio()
    hat = r.detach()[..., None] / r_k.detach() * r_k
    right = here.batch["reward"][:, None] == 1
    mixed = torch.where(right, (1 - smooth * w) * r + smooth * w / count * hat.sum(-1), r)
    return mixed, w, top[..., 0] == here.batch.actions


def paper(here: Case, count: int = 3, smooth: float = 0.01, press: float = 1.1, level: float = 0.8) -> Tensor:
    ratio, w, likeliest = mixed_ratio(here, count, smooth, level)
    advantage = z_scores(here).expand(here.batch.shape)
    advantage = torch.where((advantage < 0) & (w == 1) & likeliest, press * advantage, advantage)
    objective = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return -objective[here.batch.mask].mean()


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize(("smooth", "press", "level"), [(0.01, 1.1, 0.8), (0.3, 2.0, 0.5), (0.9, 1.0, 0.0)])
def test_the_gradient(count: int, smooth: float, press: float, level: float):
    for seed in (0, 1):
        here = case(seed, length=9)
        recipe = make("simko", group=4, count=count, smooth=smooth, press=press, level=level)
        assert_same(gradient(recipe, here), autograd(paper(here, count, smooth, press, level), here))


def test_all_cases_are_in_the_batch():
    here = case(0, length=9)
    mixed, w, likeliest = mixed_ratio(here, 3, 0.3, 0.5)
    torch.testing.assert_close(mixed, here.ratio(), rtol=1e-14, atol=0)  # its value is the ratio's
    sign = z_scores(here).expand(w.shape)
    for what in ((sign > 0) & (w == 1), (sign < 0) & (w == 1) & likeliest, (sign < 0) & (w == 1) & ~likeliest, (sign != 0) & (w == 0)):
        assert (what & here.batch.mask).any()


def test_without_smoothing_or_pressing_it_is_grpo():
    here = case(1, length=9)
    plain = make("grpo", kl=0.0).but(aggregation=token_mean)
    assert torch.equal(gradient(make("simko", smooth=0.0, press=1.0), here), gradient(plain, here))


def test_five_tokens_by_hand():
    """At r = 1 a right answer moves (1 − α)∇log π(y) + α/K Σ ∇log π(v_k): here of logits log (5 4 3 2 1)/15, y the last."""
    p = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64) / 15
    table = torch.stack([p.log(), torch.tensor([9.0, 0, 0, 0, 0]).double(), p.log(), p.log()])
    batch = Batch(
        mask=torch.tensor([[True, True], [True, False]]),
        actions=torch.tensor([[4, 0], [0, 0]]),
        columns={"state": torch.tensor([[0, 1], [2, 3]])},
        rows={"reward": torch.tensor([1.0, 0.0]), "prompt": torch.zeros(2, dtype=torch.long)},
    )
    here = Case(batch, TabularPolicy(table))
    old = here.policy.score(batch, [LogProb()])[LogProb()].detach()
    here.batch = batch.with_columns(old_logp=old)
    eye, alpha = torch.eye(5, dtype=torch.float64), 0.3
    score = (1 - alpha) * (eye[4] - p) + alpha / 3 * sum(eye[k] - p for k in range(3))
    advantage = 0.5 / (math.sqrt(0.5) + 1e-6)
    found = gradient(make("simko", smooth=alpha, press=2.0, level=0.5), here)
    torch.testing.assert_close(found[0], -advantage * score / 3, rtol=1e-10, atol=0)  # three tokens in the mean
    certain = torch.tensor([9.0, 0, 0, 0, 0]).double().softmax(-1)
    torch.testing.assert_close(found[1], -advantage * (eye[0] - certain) / 3, rtol=1e-10, atol=0)  # no fork: less uncertain
    torch.testing.assert_close(found[2], advantage * (eye[0] - p) / 3, rtol=1e-10, atol=0)  # alone in its row: never above itself


# -- the statistic -----------------------------------------------------------------------------------------------------
def test_candidates_by_hand():
    p = torch.tensor([[0.1, 0.5, 0.0, 0.4], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    logits = p.log().requires_grad_()
    two = Candidates(2)(Categorical(logits), torch.zeros(3), {})
    assert two.tolist() == pytest.approx([math.log(0.2) / 2, math.log(0.25), 0.0])  # the last has one action that is possible
    (slope,) = torch.autograd.grad(two.sum(), logits)
    expected = [[-0.1, 0.5 - 0.5, 0.0, 0.5 - 0.4], [-0.25] * 4, [0.0] * 4]
    expected[1] = [0.25 if k in torch.topk(p[1], 2).indices else -0.25 for k in range(4)]
    torch.testing.assert_close(slope, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    heated = Candidates(1)(Categorical(logits[:1], temperature=torch.tensor([0.5])), torch.zeros(1), {})
    assert heated.exp().item() == pytest.approx(0.25 / 0.42)


def test_candidates_within_a_support():
    """Only what could be sampled, renormalised; a row of zeros is not truncated."""
    p = torch.tensor([[0.1, 0.5, 0.0, 0.4], [0.1, 0.5, 0.0, 0.4]], dtype=torch.float64)
    support = torch.tensor([[1, 4, 0], [0, 0, 0]])
    logits = p.log().requires_grad_()
    found = Candidates(3)(Categorical(logits, support), torch.zeros(2), {})
    assert found.tolist() == pytest.approx([math.log(0.2 * 0.8) / 2, math.log(0.1 * 0.5 * 0.4) / 3])
    assert torch.isfinite(torch.autograd.grad(found.sum(), logits)[0]).all()
    with pytest.raises(QuatrainError, match="no likeliest candidates"):
        Candidates()(Gaussian(torch.zeros(1, 2), torch.ones(1, 2)), torch.zeros(1, 2), {})
    with pytest.raises(QuatrainError, match="a candidate at least"):
        Candidates(0)


def test_a_language_model_scores_candidates_chunk_by_chunk(tmp_path):
    """Value and gradient through the chunked scorer are those of all logits at once; the likeliest is recognised exactly."""
    transformers = pytest.importorskip("transformers")
    from quatrain.models import backbone
    from quatrain.models.scorer import score

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    model = transformers.LlamaForCausalLM(config).double()
    parts = backbone.split(model)
    tokens = torch.randint(1, 23, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
    context = {"tokens": tokens[:, :3], "mask": torch.ones(3, 3, dtype=torch.bool)}
    batch = Batch(mask, torch.where(mask, tokens[:, 3:], 0), contexts={"policy": context})
    wanted = [LogProb(), Entropy(), Candidates(3), Candidates(1)]
    for size in (10**6, 50):
        found = score(parts, batch, wanted, chunk_elements=size)
        log_p = model(tokens).logits[:, 2:6].log_softmax(-1)
        top = log_p.topk(3)
        torch.testing.assert_close(found[Candidates(3)][mask], top.values.mean(-1)[mask], rtol=0, atol=1e-12)
        taken = tokens[:, 3:] == top.indices[..., 0]
        assert torch.equal((found[LogProb()] >= found[Candidates(1)])[mask], taken[mask])
        weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        ours, plain = (
            torch.autograd.grad((weight * value)[mask].sum(), parts.head.weight) for value in (found[Candidates(3)], top.values.mean(-1))
        )
        assert_same(ours[0], plain[0])


# -- forks -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [0.0, 0.3, 0.8, 1.0])
def test_the_quantile_of_a_row_is_torchs(level: float):
    here = case(3, length=9)
    values = here.batch["value"]
    found = row_quantile(values, here.batch.mask, level)
    expected = torch.stack([torch.quantile(row[mask], level) for row, mask in zip(values, here.batch.mask, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert row_quantile(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), level).isinf().all()


def test_the_options_are_checked():
    for options in ({"level": 1.2}, {"smooth": -0.1}, {"press": 0.0}):
        with pytest.raises(QuatrainError, match="weight at forks"):
            ForkWeight(**options)
