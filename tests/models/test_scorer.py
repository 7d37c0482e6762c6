"""The scorer against the plain computation with all logits, value and gradient; chunks, contexts, other models."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.models.backbone import check, split
from quatrain.models.distributions import Categorical
from quatrain.models.scorer import score
from quatrain.parts.likelihoods import Candidates, Divergence, Entropy, LogProb
from tests.tiny_models import ARCHITECTURES, tiny_model

STATISTICS = [LogProb(), Entropy(), Divergence("teacher", "reverse"), Divergence("teacher", "forward"), Divergence("teacher", "jsd")]
STATISTICS += [Divergence("teacher", "jsd", beta=0.3, cap=0.05, top=5), Candidates(2)]


def batch(size: int = 30, support: bool = False, temperature: bool = True, seed: int = 0) -> Batch:
    """Uneven prompts and responses, a hole (a tool's output that is present but no action), temperatures and supports."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(2, size, shape, generator=generator)  # noqa: E731
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    present = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    actions = draw(4, 5).masked_fill(~present, 0)
    context = {"tokens": draw(4, 6), "mask": torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]}
    rows = {"temperature": torch.tensor([0.7, float("nan"), 1.0, 2.0])} if temperature else {}
    columns = {"present": present}
    if support:
        others = torch.stack([draw(4, 5) for _ in range(3)], -1)
        ids = torch.cat([actions[..., None] + 1, torch.where(others == actions[..., None], 0, others + 1)], -1)
        ids[1] = 0  # this row is not truncated
        columns["support"] = torch.stack(
            [ids[..., 0], ids[..., 1] * (ids[..., 1] != ids[..., 2]), ids[..., 2] * (ids[..., 2] != ids[..., 3])], -1
        )
    return Batch(mask, actions, columns, rows, {"policy": context})


def plain(model, batch: Batch, teacher=None, role: str = "policy", teacher_role: str = "policy") -> dict:
    """Row by row, without padding, with all logits, without chunks."""
    results = {statistic: torch.zeros(batch.shape, dtype=model.dtype) for statistic in (STATISTICS if teacher else STATISTICS[:2])}

    def logits(which, row: int, role: str) -> torch.Tensor:
        context = batch.contexts[role]
        prompt = context["tokens"][row][context["mask"][row]]
        response = batch.actions[row][batch.present[row]]
        everything = which(torch.cat([prompt, response])[None]).logits[0]
        place = len(prompt) + batch.present[row].cumsum(0) - 1
        return everything[place[batch.mask[row]] - 1]

    for row in range(len(batch)):
        where = batch.mask[row]
        if not where.any():
            continue
        heat = batch["temperature"][row].nan_to_num(1.0).expand(int(where.sum())) if "temperature" in batch else None
        own = Categorical(logits(model, row, role), batch["support"][row][where] if "support" in batch else None, heat)
        others = {"teacher": Categorical(logits(teacher, row, teacher_role).detach(), None, heat)} if teacher else {}
        for statistic in results:
            values = statistic(own, batch.actions[row][where], others)
            results[statistic] = results[statistic].index_put((torch.full_like(where.nonzero()[:, 0], row), where.nonzero()[:, 0]), values)
    return results


def gradients(model, results: dict) -> list[torch.Tensor]:
    weight = torch.linspace(-1, 2, 20, dtype=torch.float64).reshape(4, 5)
    loss = sum(((i + 1) * weight.to(value.dtype) * value).sum() for i, value in enumerate(results.values()))
    return torch.autograd.grad(loss, list(model.parameters()))


def largest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    scale = max(x.abs().max().item() for x in a)
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)) / scale


@pytest.mark.parametrize("support", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_plain_computation_in_fp64(architecture: str, tied: bool, support: bool) -> None:
    model, teacher = (tiny_model(architecture, tied=tied, vocabulary=30, seed=seed, dtype=torch.float64) for seed in (0, 1))
    rows = batch(support=support)
    expected = plain(model, rows, teacher)
    slopes = gradients(model, expected)
    for elements in (2**24, 70, 1):  # one chunk, chunks of two positions, chunks of one
        results = score(split(model), rows, STATISTICS, others={"teacher": split(teacher)}, chunk_elements=elements)
        for statistic in STATISTICS:
            torch.testing.assert_close(results[statistic], expected[statistic], rtol=0, atol=1e-12)
            assert results[statistic][~rows.mask].abs().max() == 0
        assert largest(slopes, gradients(model, results)) < 1e-11


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_plain_computation_in_fp32(architecture: str) -> None:
    model = tiny_model(architecture, vocabulary=30)
    rows = batch(support=True)
    expected, results = plain(model, rows), score(split(model), rows, STATISTICS[:2], chunk_elements=100)
    for statistic in STATISTICS[:2]:
        torch.testing.assert_close(results[statistic], expected[statistic], rtol=1e-6, atol=3e-6)
    assert largest(gradients(model, expected), gradients(model, results)) < 3e-6


def test_logits_of_everything_never_exist() -> None:
    model, rows, seen = tiny_model(vocabulary=30), batch(), []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    score(split(model), rows, STATISTICS[:2], chunk_elements=90)
    assert sum(shape[0] for shape in seen) == int(rows.mask.sum()) and max(shape[0] for shape in seen) <= 3


def test_nothing_is_computed_again_where_the_gradient_is_zero() -> None:
    model, rows = tiny_model(vocabulary=30, tied=False), batch(support=True)
    value = score(split(model), rows, [LogProb()], chunk_elements=60)[LogProb()]
    counted = []
    original = Categorical.log_prob
    try:
        Categorical.log_prob = lambda self, action: (counted.append(len(action)), original(self, action))[1]
        value[0, :3].sum().backward()
    finally:
        Categorical.log_prob = original
    assert sum(counted) == 3


def test_a_head_with_hooks_or_adapters_goes_through_autograd() -> None:
    model, rows = tiny_model(vocabulary=30, tied=False, dtype=torch.float64), batch()
    expected = plain(model, rows)
    handle = model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)
    assert not split(model).plain_head
    scaled = score(split(model), rows.with_rows(temperature=2 * rows["temperature"].nan_to_num(1.0)), STATISTICS[:2], chunk_elements=60)
    handle.remove()
    for statistic in STATISTICS[:2]:
        torch.testing.assert_close(scaled[statistic], expected[statistic], rtol=0, atol=1e-12)
    assert all(slope.abs().max() > 0 for slope in gradients(model, scaled))


@pytest.mark.parametrize("kind", ["Gemma2", "Cohere", "Granite"])
def test_scaled_and_capped_logits(kind: str) -> None:
    import transformers

    own = {"Gemma2": {"final_logit_softcapping": 1.5, "head_dim": 8}, "Cohere": {"logit_scale": 0.3}, "Granite": {"logits_scaling": 4.0}}[
        kind
    ]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **own,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    check(split(model))
    rows = batch()
    results, expected = score(split(model), rows, STATISTICS[:2], chunk_elements=60), plain(model, rows)
    for statistic in STATISTICS[:2]:
        torch.testing.assert_close(results[statistic], expected[statistic], rtol=0, atol=1e-9)


def test_an_unknown_way_to_make_logits_is_refused() -> None:
    model = tiny_model()
    model.config.logit_scale = 3.0  # Qwen3 does not apply it
    with pytest.raises(QuatrainError, match="not known"):
        check(split(model))


def test_a_teacher_reads_its_own_context_and_gets_no_gradient() -> None:
    model, teacher = (tiny_model("llama", vocabulary=30, seed=seed, dtype=torch.float64) for seed in (0, 1))
    rows = batch()
    hinted = {"tokens": torch.full((4, 3), 7), "mask": torch.ones(4, 3, dtype=torch.bool)}
    rows = rows.with_context("teacher", **hinted)
    results = score(split(model), rows, STATISTICS, others={"teacher": split(teacher)}, chunk_elements=60)
    expected = plain(model, rows, teacher, teacher_role="teacher")
    for statistic in STATISTICS:
        torch.testing.assert_close(results[statistic], expected[statistic], rtol=0, atol=1e-12)
    sum(value.sum() for value in results.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    swapped = score(split(teacher), rows, [LogProb()], role="teacher")[LogProb()]
    torch.testing.assert_close(swapped, plain(teacher, rows, role="teacher")[LogProb()], rtol=0, atol=1e-12)


def test_temperature_per_action() -> None:
    model, rows = tiny_model(vocabulary=30), batch(temperature=False)
    by_row = score(split(model), rows.with_rows(temperature=torch.tensor([0.7, 1.0, 1.5, 1.0])), [LogProb()])[LogProb()]
    column = torch.tensor([0.7, 1.0, 1.5, 1.0])[:, None].expand(4, 5).contiguous()
    assert torch.equal(score(split(model), rows.with_columns(temperature=column), [LogProb()])[LogProb()], by_row)


def test_padding_may_hold_anything_and_nothing_masked_counts() -> None:
    model, rows = tiny_model(vocabulary=30), batch()
    context = rows.contexts["policy"]
    dirty = Batch(
        rows.mask, torch.where(rows.present, rows.actions, 29), rows.columns, rows.rows,
        {"policy": {"tokens": torch.where(context["mask"], context["tokens"], 28), "mask": context["mask"]}},
    )  # fmt: skip
    assert torch.equal(score(split(model), rows, [LogProb()])[LogProb()], score(split(model), dirty, [LogProb()])[LogProb()])


def test_a_batch_without_actions_scores_zero_and_can_be_differentiated() -> None:
    model, rows = tiny_model(vocabulary=30), batch()
    empty = Batch(torch.zeros_like(rows.mask), rows.actions, rows.columns, rows.rows, rows.contexts)
    value = score(split(model), empty, [LogProb()])[LogProb()]
    value.sum().backward()
    assert value.abs().max() == 0 and all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


def test_refusals_name_what_is_missing() -> None:
    model, rows = tiny_model(vocabulary=30), batch()
    with pytest.raises(QuatrainError, match="role 'hinted'"):
        score(split(model), rows, [LogProb()], role="hinted")
    with pytest.raises(QuatrainError, match="teacher"):
        score(split(model), rows, [Divergence("teacher")])
    nothing = {"policy": {"tokens": torch.zeros(4, 1), "mask": torch.zeros(4, 1)}}
    with pytest.raises(QuatrainError, match="nothing before it"):
        score(split(model), Batch(rows.mask, rows.actions, contexts=nothing), [LogProb()])
    with pytest.raises(QuatrainError, match="not a causal language model"):
        split(torch.nn.Linear(2, 2))
