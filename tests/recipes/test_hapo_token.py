"""hapo-token: autograd of the loss with redistributed advantages and widened clips; each part by hand; sampling by entropy."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.controllers.heat import EntropyScale
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import GroupRelative
from quatrain.parts.bounds import Clip
from quatrain.parts.guides import guide_column
from quatrain.parts.likelihoods import Entropy
from quatrain.parts.natures import Heat, Nature, NatureClip, Redistribution, entropy_scale
from quatrain.parts.token_groups import TokenRelative
from quatrain.training.entropies import ScoreEntropy
from quatrain.training.registry import make
from quatrain.training.state import State
from tests.toy import Case, assert_same, autograd, case, gradient


def natures(here: Case, level: float, version: str) -> Tensor:
    """As the paper says it, with the root mean square that cancels."""
    mask = here.batch.mask
    e = here.clean("old_entropy").clamp(min=1e-8).log()
    seen = e[mask]
    c = seen.quantile(level, interpolation="nearest")
    e, seen = ((v - c) / (seen - c).square().mean().sqrt() for v in (e, seen))
    below = seen.min() if version == "code" else seen.min().abs()
    return torch.where(mask, torch.where(e > 0, e / seen.max(), e / below), 0.0)


def token_scores(here: Case, group: int = 4) -> Tensor:
    reward, length = here.batch["reward"].view(-1, group), here.batch.mask.sum(1).view(-1, group).double()
    rows = []
    for r, n in zip(reward, length, strict=True):
        each = r.repeat_interleave(n.long())
        a = (r - each.mean()) / (each.std(correction=0) + 1e-6)
        rows.append((r - r.mean()) / (r.std() + 1e-6) if bool((a.abs() >= 5).any()) else a)
    return torch.cat(rows)[:, None]


def paper(here: Case, version: str, tokens: bool, beta: float, alpha: float, level: float = 0.8, dual: float = 10.0) -> Tensor:
    h, r = natures(here, level, version), here.ratio()
    reward = here.batch["reward"].view(-1, 4)
    z = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)).view(-1, 1)
    advantage = (token_scores(here) if tokens else z).expand(r.shape)
    low = torch.where(h <= 0, 0.2 * (1 - alpha * h), 0.2)
    high = torch.where(h > 0, 0.2 * (1 + alpha * h), 0.2)
    inside = (r.detach() > 1 - low / 2) & (r.detach() < 1 + high / 2)
    advantage = torch.where(((h > 0) & ~inside) | ((h <= 0) & inside), advantage * (1 + beta * h), advantage)
    clipped = torch.minimum(r * advantage, torch.maximum(torch.minimum(r, 1 + high), 1 - low) * advantage)
    objective = torch.where(advantage < 0, torch.maximum(clipped, dual * advantage), clipped)
    return -objective[here.batch.mask].mean()


@pytest.mark.parametrize("version", ["paper", "code"])
@pytest.mark.parametrize(("tokens", "beta", "alpha"), [(True, 1.0, 1.0), (True, 0.0, 0.5), (False, 0.7, 0.0), (True, 0.4, 0.8)])
def test_the_gradient(version: str, tokens: bool, beta: float, alpha: float):
    for seed in range(5):
        here = case(seed)
        recipe = make("hapo-token", group=4, version=version, tokens=tokens, share=beta, widen=alpha)
        assert_same(gradient(recipe, here), autograd(paper(here, version, tokens, beta, alpha), here))


def test_other_levels_and_a_near_dual_clip():
    here = case(0)
    assert (here.ratio() > 1.5)[here.batch.mask & (token_scores(here) < 0)].any()
    recipe = make("hapo-token", level=0.5, dual=1.5)
    assert_same(gradient(recipe, here), autograd(paper(here, "paper", True, 1.0, 1.0, 0.5, 1.5), here))


def test_all_cases_are_in_the_batches():
    seen = set()
    for seed in range(5):
        here = case(seed)
        h, r, mask = natures(here, 0.8, "paper"), here.ratio().detach(), here.batch.mask & (token_scores(here) != 0)
        sides = (h > 0, r > 1.2, r < 0.8, (r > 0.9) & (r < 1.1), token_scores(here) > 0)
        seen |= set(zip(*(side.expand(r.shape)[mask].tolist() for side in sides), strict=True))
    assert {
        (up, *where, sign) for up in (True, False) for where in ((True, False, False), (False, True, False)) for sign in (True, False)
    } <= seen
    assert any(inside and up for up, _, _, inside, _ in seen) and any(inside and not up for up, _, _, inside, _ in seen)


# -- limits ------------------------------------------------------------------------------------------------------------
def test_with_all_parts_off_or_one_entropy_it_is_dapo():
    plain = make("dapo", clip_high=0.2, mean="batch").but(bound=Clip(0.2, 0.2, dual=10.0))
    here = case(1)
    off = make("hapo-token", tokens=False, share=0.0, widen=0.0, heat=0.0)
    assert torch.equal(gradient(off, here), gradient(plain, here)) and off.controllers == ()
    flat = replace(here, batch=here.batch.with_columns(old_entropy=torch.ones_like(here.batch["old_entropy"])))
    assert torch.equal(gradient(make("hapo-token", tokens=False), flat), gradient(plain, flat))


def test_token_level_advantages():
    here = case(0)
    advantage = TokenRelative()(here.batch)
    total = (here.batch.lengths * advantage).view(-1, 4).sum(1)
    assert float(total.abs().max()) < 1e-12 and advantage.abs().max() > 0.5
    batch = Batch(
        torch.tensor([[True] * 3, [True, False, False]]),
        torch.zeros(2, 3),
        rows={"reward": torch.tensor([1.0, 0.0], dtype=torch.float64), "prompt": torch.zeros(2)},
    )
    # tokens 1 1 1 0: mean ¾, variance 3/16
    assert TokenRelative(eps=0.0)(batch).tolist() == pytest.approx([3**-0.5, -(3**0.5)])
    assert torch.equal(TokenRelative(limit=1.7)(batch), GroupRelative()(batch))  # |−√3| reaches it
    even = replace(batch, mask=torch.ones(2, 3, dtype=torch.bool))
    assert TokenRelative(eps=0.0)(even).tolist() == pytest.approx([1.0, -1.0])  # GRPO's with a population deviation
    with pytest.raises(QuatrainError, match="limit of an advantage"):
        TokenRelative(limit=0.0)


def test_four_tokens_by_hand():
    """h = −1 doubles ε_low and, inside the zone, leaves nothing; h = 1 doubles ε_high and doubles what is outside."""
    guide = Nature()
    h = torch.tensor([[-1.0, -1.0, 1.0, 1.0]])
    batch = Batch(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4), columns={guide_column(guide): h})

    def factors(*ratio: float, sign: float) -> list[float]:
        gap = torch.tensor([ratio]).log()
        seen = batch.with_columns(current_logp=gap, old_logp=torch.zeros(1, 4))
        return (NatureClip(guide)(gap, torch.full((1, 4), sign), batch) * Redistribution(NatureClip(guide))(seen))[0].tolist()

    # zones: h = −1 (0.8, 1.1), clip [0.6, 1.2];  h = 1 (0.9, 1.2), clip [0.8, 1.4]
    assert factors(0.7, 1.0, 1.3, 1.1, sign=1.0) == pytest.approx([0.7, 0.0, 2.6, 1.1])
    assert factors(0.7, 0.5, 0.85, 0.7, sign=-1.0) == pytest.approx([0.7, 0.0, 1.7, 0.0])
    assert factors(1.15, 1.3, 1.45, 0.5, sign=1.0) == pytest.approx([1.15, 0.0, 0.0, 1.0])
    assert factors(9.0, 11.0, 9.0, 11.0, sign=-1.0) == pytest.approx([9.0, 0.0, 18.0, 0.0])


def test_the_scale_by_hand():
    entropy = torch.tensor([1.0, 2.0, 4.0, 8.0, 64.0]).double()
    centre, top, bottom = entropy_scale(entropy.log().exp(), 0.5)
    assert (centre, top, bottom) == pytest.approx([torch.tensor(x).double().log().item() for x in (4.0, 16.0, 4.0)])
    batch = Batch(
        torch.tensor([[True] * 5 + [False]]), torch.zeros(1, 6), columns={"old_entropy": torch.cat([entropy, entropy[:1] * 99])[None]}
    )
    assert Nature(0.5)(batch)[0].tolist() == pytest.approx([-1.0, -0.5, 0.0, 0.25, 1.0, 0.0])
    assert Nature(0.5, signed=False)(batch)[0].tolist() == pytest.approx([1.0, 0.5, 0.0, 0.25, 1.0, 0.0])
    assert (
        entropy_scale(torch.zeros(0)) == (0.0, 0.0, 0.0)
        and torch.isfinite(Nature()(batch.with_columns(old_entropy=torch.zeros(1, 6)))).all()
    )
    for wrong in (
        lambda: Nature(1.5),
        lambda: NatureClip(dual=1.0),
        lambda: NatureClip(widen=2.0),
        lambda: Redistribution(share=2.0),
        lambda: Heat(1.0),
    ):
        with pytest.raises(QuatrainError):
            wrong()


# -- sampling ----------------------------------------------------------------------------------------------------------
def test_the_scale_is_that_of_the_batch_before():
    here = case(0)
    state = SimpleNamespace(stores={"fresh": here.batch})
    found = EntropyScale(0.8)(state, {})
    assert tuple(found.values()) == entropy_scale(here.batch["old_entropy"][here.batch.mask], 0.8)
    assert set(found) <= set(make("hapo-token").knobs())  # a resumed run has the scale it had
    heat = Heat(0.05, True, *found.values())
    assert heat(here.batch["old_entropy"][here.batch.mask]).max() == pytest.approx(1.05)
    assert Heat()(torch.tensor([0.1, 3.0])).tolist() == [1.0, 1.0]  # no scale yet


def test_the_entropy_column_is_at_temperature_one():
    here = case(0)
    state = State(task=None, models={"policy": here.policy})
    hot = here.batch.with_columns(temperature=torch.full(here.batch.shape, 3.0))
    found = ScoreEntropy(10**6)(state, hot)
    expected = here.policy.score(here.batch, [Entropy()])[Entropy()]
    assert torch.equal(found["old_entropy"], expected) and "temperature" in found


def test_a_language_model_samples_at_a_temperature_by_entropy():
    """What is recorded is the distribution sampled from: scored again it is the same, and the factor is that of the entropy."""
    transformers = pytest.importorskip("transformers")
    from quatrain.models import backbone
    from quatrain.models.sampler import Stops, sample
    from quatrain.models.scorer import score
    from quatrain.parts.likelihoods import LogProb
    from quatrain.protocols import Sampling

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    parts, heat = backbone.split(model), Heat(0.5, True, 0.5, 0.3, 0.7)
    prompts, seeds = [[1, 2, 3], [4, 5, 6]], torch.arange(8)
    for temperature in (1.0, 0.8):
        found = sample(parts, prompts, 4, Sampling(temperature, max_actions=6, heat=heat), seeds, Stops((0, 1)))
        context = torch.tensor(prompts).repeat_interleave(4, 0)
        batch = Batch(
            found.mask, found.tokens, contexts={"policy": {"tokens": context, "mask": torch.ones_like(context, dtype=torch.bool)}}
        )
        entropy = score(parts, batch, [Entropy()])[Entropy()]
        torch.testing.assert_close(found.temperature[found.mask], (temperature * heat(entropy))[found.mask].float(), rtol=1e-4, atol=1e-4)
        assert found.temperature[found.mask].std() > 0.05
        again = score(parts, batch.with_columns(temperature=found.temperature), [LogProb()])[LogProb()]
        torch.testing.assert_close(again[found.mask], found.logp[found.mask], rtol=1e-3, atol=1e-3)
    plain = sample(parts, prompts, 4, Sampling(max_actions=6), seeds, Stops((0, 1)))
    cold = sample(parts, prompts, 4, Sampling(max_actions=6, heat=Heat()), seeds, Stops((0, 1)))
    assert plain.temperature is None and torch.equal(cold.tokens, plain.tokens) and (cold.temperature == 1.0).all()
