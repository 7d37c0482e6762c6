"""The masked-diffusion policy: both directions are seen, its likelihood by hand, draws as data, ends and cuts, a directory and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.masked_diffusion import MaskedDiffusionLM
from quatrain.parts.likelihoods import Divergence, Entropy, LogProb
from quatrain.protocols import Policy, Sampling
from tests.tiny_diffusion import diffusion

PROMPTS = ["12+3=", "7*8=", "9-4+2="]


def sampled(ours: MaskedDiffusionLM, group: int = 4, sampling: Sampling | None = None, seed: int = 0) -> Batch:
    seeds = torch.arange(len(PROMPTS) * group) + 1000 * seed
    return ours.sample([ours.encode(prompt) for prompt in PROMPTS], group, sampling or Sampling(max_actions=6), seeds)


def plainly(ours: MaskedDiffusionLM, batch: Batch, statistic: str = "logp") -> Tensor:
    """[N] Σ_t ℓ_t, row by row through the module's own forward, without the library."""
    end, mask, width = ours.tokenizer.eos_token_id, ours.tokenizer.mask_token_id, ours.unmasking.canvas
    context, found = batch.contexts["policy"], []
    for row in range(len(batch)):
        prompt = context["tokens"][row][context["mask"][row]]
        answer = batch.actions[row][batch.mask[row]]
        whole = torch.full((width,), mask)
        whole[: len(answer)] = answer
        length = len(answer)
        if answer[-1] == end:
            whole[length:], length = end, width
        hidden = batch["hidden"][row]
        ids = torch.cat([prompt, whole.masked_fill(hidden, mask)])[None]
        logits = ours.module(input_ids=ids, attention_mask=torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)).logits
        logits = logits[0, len(prompt) :].clone()
        logits[:, mask] = -torch.inf
        temperature = float(batch["temperature"][row]) if "temperature" in batch else 1.0
        log_p = (logits / temperature).log_softmax(-1)
        if statistic == "logp":
            each = log_p.gather(1, whole[:, None].clamp(max=logits.shape[1] - 1))[:, 0]
        else:
            each = -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0.0)).sum(-1)
        found.append(each[hidden].sum() * length / hidden.sum())
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_likelihood_is_one_draws_evidence_bound(temperature: float):
    ours = diffusion()
    batch = sampled(ours, sampling=Sampling(temperature=temperature, max_actions=6))
    scores = ours.score(batch, [LogProb(), Entropy()])
    assert torch.allclose(scores[LogProb()].sum(1), plainly(ours, batch), atol=2e-4)
    assert torch.allclose(scores[Entropy()].sum(1), plainly(ours, batch, "entropy"), atol=2e-4)
    assert torch.allclose(scores[LogProb()], batch["old_logp"], atol=1e-5)  # nothing was updated: the ratio is 1
    assert not scores[LogProb()][~batch.mask].any()


def test_the_gradient_is_that_of_the_bound_and_chunks_change_nothing():
    ours = diffusion(dtype=torch.float64)
    batch = sampled(ours)
    weight = torch.randn(batch.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameters = list(ours.module.parameters())
    (ours.score(batch, [LogProb()])[LogProb()].sum(1) * weight[:, 0]).sum().backward()
    found = [parameter.grad.clone() for parameter in parameters]
    expected = torch.autograd.grad((plainly(ours, batch) * weight[:, 0]).sum(), parameters, allow_unused=True, materialize_grads=True)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-9 * max(1.0, float(other.abs().max()))
    ours.module.zero_grad()
    ours.chunk_elements = 3 * ours.backbone.vocabulary
    (ours.score(batch, [LogProb()])[LogProb()].sum(1) * weight[:, 0]).sum().backward()
    for one, parameter in zip(found, parameters, strict=True):
        assert float((one - parameter.grad).abs().max()) <= 1e-9 * max(1.0, float(one.abs().max()))


def test_what_comes_after_is_seen_and_padding_is_not():
    ours = diffusion()
    prompt = ours.encode(PROMPTS[0])
    hidden = torch.tensor([[True, False, False, False, False, False]])
    values = []
    for text in ("12", "13"):
        batch = ours.demonstrate([prompt], [text]).with_rows(hidden=hidden)
        values.append(float(ours.score(batch, [LogProb()])[LogProb()][0, 0].detach()))
    assert abs(values[0] - values[1]) > 1e-3  # the second token tells about the first
    both = ours.demonstrate([prompt, ours.encode("1+2+3+4+5=")], ["12", "13"]).with_rows(hidden=hidden.expand(2, -1))
    assert abs(float(ours.score(both, [LogProb()])[LogProb()][0, 0].detach()) - values[0]) < 1e-4


def test_to_end_is_to_fill_the_rest_of_the_canvas():
    ours = diffusion()
    prompt = ours.encode(PROMPTS[0])
    view = ours.laid_out(ours.demonstrate([prompt, prompt], ["12", [5, 6]]))
    end, mask = ours.tokenizer.eos_token_id, ours.tokenizer.mask_token_id
    assert view.tokens[0, 2:].tolist() == [end] * 4 and view.owner[0].tolist() == [0, 1, 2, 2, 2, 2] and view.eligible[0].all()
    assert view.tokens[1].tolist() == [5, 6] + [mask] * 4  # cut: what follows is unknown, and has no likelihood
    assert view.eligible[1].tolist() == [True, True] + [False] * 4
    batch = ours.demonstrate([prompt], ["12"]).with_rows(hidden=torch.tensor([[False] * 5 + [True]]))
    score = ours.score(batch, [LogProb()])[LogProb()]
    assert score[0, 2] != 0 and score[0, :2].abs().sum() == 0


def test_what_is_sampled():
    ours = diffusion()
    assert isinstance(ours, Policy)
    batch = sampled(ours, group=8)
    end = ours.tokenizer.eos_token_id
    lengths, last = batch.lengths, batch.actions.gather(1, (batch.lengths - 1)[:, None])[:, 0]
    assert batch["hidden"].shape == (24, 6) and len(batch["hidden"].unique(dim=0)) > 10
    assert torch.equal(batch["terminated"].any(1), last == end) and torch.equal(batch["truncated"].any(1), last != end)
    assert not (batch.actions == ours.tokenizer.mask_token_id)[batch.mask].any()
    assert ((batch.actions == end) & batch.mask).sum(1).max() <= 1 and int(lengths.max()) <= 6
    one = ours.sample([ours.encode(PROMPTS[1])], 1, Sampling(max_actions=6), torch.tensor([11]))  # a row of its own
    row = batch.take([11]).trim()
    assert torch.equal(one.actions, row.actions) and torch.equal(one["hidden"], row["hidden"])
    cut = sampled(ours, group=8, sampling=Sampling(max_actions=2))
    assert int(cut.lengths.max()) == 2 and torch.equal(cut.actions[:, 0], batch.actions[:, 0])
    ours.max_rows = 5
    assert torch.equal(sampled(ours, group=8).actions, batch.actions)
    greedy = sampled(ours, sampling=Sampling(temperature=0.0, max_actions=6))
    assert all(len(greedy.take(range(4 * p, 4 * p + 4)).actions.unique(dim=0)) == 1 for p in range(3))
    assert "temperature" not in greedy and "temperature" in sampled(ours, sampling=Sampling(temperature=0.5))


def test_demonstrations_are_hidden_anew_after_every_update():
    ours = diffusion()
    prompts = [ours.encode(prompt) for prompt in PROMPTS] * 4
    first, again = ours.demonstrate(prompts, ["12345"] * 12), ours.demonstrate(prompts, ["12345"] * 12)
    assert torch.equal(first["hidden"], again["hidden"])
    ours.version = 1
    assert not torch.equal(ours.demonstrate(prompts, ["12345"] * 12)["hidden"], first["hidden"])


def test_redrawn_rows_share_everything_but_the_draw():
    ours = diffusion()
    batch = sampled(ours)
    many = ours.redraw(batch, 3, seed=4)
    assert len(many) == 36 and torch.equal(many.actions[::3], batch.actions) and torch.equal(many.actions[2::3], batch.actions)
    assert torch.equal(ours.redraw(batch, 3, seed=4)["hidden"], many["hidden"])
    assert not torch.equal(ours.redraw(batch, 3, seed=5)["hidden"], many["hidden"])
    assert bool(ours.redraw(batch, 1, seed=0, whole=True)["hidden"].eq(ours.laid_out(batch).eligible).all())


def test_another_model_reads_the_same_draw():
    ours, other = diffusion(), diffusion(seed=1)
    batch = sampled(ours)
    toward = Divergence("teacher", "reverse")
    score = ours.score(batch, [toward], others={"teacher": other})[toward]
    assert float(score.sum()) > 0.1 and float(score.min()) > -1e-5
    assert float(ours.score(batch, [toward], others={"teacher": ours.clone()})[toward].abs().max()) < 1e-4
    with pytest.raises(QuatrainError, match="not given"):
        ours.score(batch, [toward])
    with pytest.raises(QuatrainError, match="no context"):
        ours.score(batch, [LogProb()], role="corrupted")


def test_a_directory_and_back(tmp_path):
    from quatrain.models.loading import load_causal_lm

    ours = diffusion(order="random")
    ours.save(tmp_path)
    again = load_causal_lm(tmp_path)
    assert isinstance(again, MaskedDiffusionLM) and again.unmasking == ours.unmasking
    assert (tmp_path / "model.safetensors").exists()
    batch, other = sampled(ours), sampled(again)
    assert torch.equal(batch.actions, other.actions) and torch.allclose(batch["old_logp"], other["old_logp"], atol=1e-5)
    twin = ours.clone()
    with torch.no_grad():
        next(ours.module.parameters()).add_(0.1)
    assert torch.equal(sampled(twin).actions, batch.actions)
    assert ours.but(order="confidence").unmasking.order == "confidence" and ours.unmasking.order == "random"


def test_what_it_cannot_do_is_refused():
    ours = diffusion()
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.9), Sampling(stop=("=",)), Sampling(heat=lambda entropy: entropy)):
        with pytest.raises(QuatrainError, match="temperature"):
            sampled(ours, sampling=sampling)
    with pytest.raises(QuatrainError, match="longer than the canvas"):
        ours.demonstrate([ours.encode("1=")], ["1234567"])
    from tests.tiny_models import tiny_model, tiny_tokenizer

    with pytest.raises(QuatrainError, match="mask token"):
        MaskedDiffusionLM(tiny_model(), tiny_tokenizer())
