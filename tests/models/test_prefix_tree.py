"""Samples as a tree of their prefixes: the nodes are the distinct prefixes, and nothing that is scored changes."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.models import prefix_tree, scorer
from quatrain.models.backbone import split
from quatrain.models.prefix_tree import fits, grow
from quatrain.models.scorer import score
from quatrain.parts.likelihoods import Entropy, LogProb
from tests.tiny_models import tiny_model


def fewer(rows: int, positions: int) -> int:
    return rows * positions


def groups(prompts: int = 5, group: int = 6, vocabulary: int = 4, seed: int = 0) -> Batch:
    """Few words and short answers, so that samples of a prompt agree often; prompts of 1 to 7 tokens; answers with a hole."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randint(1, vocabulary, shape, generator=generator)  # noqa: E731
    sizes = torch.randint(1, 8, (prompts,), generator=generator).repeat_interleave(group)
    tokens = draw(prompts, 7).repeat_interleave(group, 0)
    lengths = torch.randint(0, 6, (prompts * group,), generator=generator)
    present = torch.arange(5) < lengths[:, None]
    mask = present & (torch.arange(5) != 2)
    rows = {"temperature": torch.full((prompts * group,), 0.7)}
    return Batch(
        mask,
        draw(prompts * group, 5),
        {"present": present},
        rows,
        {"policy": {"tokens": tokens, "mask": torch.arange(7) >= 7 - sizes[:, None]}},
    )


def test_nodes_are_the_distinct_prefixes() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 4], [1, 3, 3]]  # prompts of two tokens: (1, 2) and (1, 3)
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in rows])
    trees = grow(ids, torch.tensor([len(row) for row in rows]), torch.full((5,), 2), fewer)
    assert trees.ids.shape == (2, 5)
    whole = [(tuple(row[:2]), tuple(row[: i + 1])) for row in rows for i in range(len(row))]
    places = [int(trees.place[r, i]) for r, row in enumerate(rows) for i in range(len(row))]
    assert len(set(zip(whole, places, strict=True))) == len(set(whole)) == len(set(places)) == 8
    for (_, prefix), place in set(zip(whole, places, strict=True)):
        tree, node = divmod(place, 5)
        seen = trees.sees[tree, 0, node].nonzero()[:, 0]
        ancestors = sorted(seen.tolist(), key=lambda j: int(trees.position[tree, j]))
        assert [int(trees.ids[tree, j]) for j in ancestors] == list(prefix)
        assert [int(trees.position[tree, j]) for j in ancestors] == list(range(len(prefix)))


def test_small_trees_stand_beside_each_other_and_do_not_see_each_other() -> None:
    rows = [[1, 2, 3, 4], [1, 2, 5, 6], [7, 8], [7, 9], [7, 8], [2, 1, 1], [2, 1, 1]]  # trees of 6, 3 and 3 nodes
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in rows])
    trees = grow(ids, torch.tensor([len(row) for row in rows]), torch.ones(7).long(), fewer)
    assert trees.ids.shape == (2, 6)
    for r, row in enumerate(rows):
        home, node = divmod(int(trees.place[r, len(row) - 1]), 6)
        assert int(trees.sees[home, 0, node].sum()) == len(row)  # its ancestors and itself
        assert home == (r > 1)


def test_the_last_action_of_a_row_is_not_read() -> None:
    data = groups()
    rows = scorer.contiguous(data, "policy", whole=False)
    whole = scorer.contiguous(data, "policy")
    last = torch.where(data.mask, torch.arange(5), -1).amax(1)  # actions are at 0, 1, 3 and 4, what is present at 2 is read as well
    assert rows.lengths.tolist() == (rows.prompts + last.clamp_min(0)).tolist()
    assert torch.equal(rows.ids.flatten()[rows.index], whole.ids.flatten()[whole.index])
    assert rows.lengths.sum() < whole.lengths.sum()


@pytest.mark.parametrize("trees", [True, False])
def test_the_last_feed_forward_part_is_computed_where_it_is_read(trees: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, data, seen = split(tiny_model("qwen3")), groups(), []
    if not trees:
        monkeypatch.setattr(scorer, "grow", lambda *args: None)
    for layer in backbone.decoder.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, args, out: seen.append(out.shape[:-1].numel()))
    score(backbone, data, [LogProb()])
    plain = scorer.contiguous(data, "policy")
    prefixes = {(int(data.contexts["policy"]["tokens"][row, -1]), tuple(plain.ids[row, : place + 1].tolist()))
                for row, place in (divmod(int(index), plain.ids.shape[1]) for index in plain.index)}  # fmt: skip
    assert seen[-1] < seen[-2]
    assert seen[-1] == (len(prefixes) if trees else int(data.mask.sum()))
    score(backbone, data, [LogProb()])
    assert not backbone.decoder.layers[-1].mlp._forward_hooks and not backbone.decoder.layers[-1].mlp._forward_pre_hooks


def test_rows_that_share_little_stay_rows() -> None:
    ids = torch.arange(24).view(4, 6)
    six, two = torch.full((4,), 6), torch.full((4,), 2)
    assert grow(ids, six, two, fewer) is None  # no prompt twice
    assert grow(torch.cat([ids[:1, :1].expand(4, 1), ids[:, 1:]], 1), six, torch.ones(4).long(), fewer) is None  # 21 nodes for 24 positions
    assert grow(ids[:1], six[:1], two[:1], fewer) is None and grow(ids, six, 0 * two, fewer) is None


def test_two_prefixes_with_one_hash_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, four, two = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 3, 4]]), torch.full((3,), 4), torch.full((3,), 2)
    assert grow(ids, four, two, fewer) is not None
    honest = prefix_tree.uniforms
    monkeypatch.setattr(prefix_tree, "uniforms", lambda seeds, steps: honest(torch.where(seeds == 5 * 4 + 2, 3 * 4 + 2, seeds), steps))
    assert grow(ids, four, two, fewer) is None  # 5 at depth 2 has the hash of 3


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_scores_and_gradients_do_not_change(kind: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny_model(kind, vocabulary=30, dtype=dtype, scale=3.0), groups()
    used, original = [], scorer.grow
    monkeypatch.setattr(scorer, "grow", lambda *args: (used.append(original(*args)), used[-1])[1])
    results = {}
    for name, gain in (("trees", 10.0), ("rows", 0.0)):
        monkeypatch.setattr(prefix_tree, "GAIN", gain)
        model.zero_grad()
        found = score(split(model), batch, [LogProb(), Entropy()])
        weight = torch.linspace(-1, 2, batch.mask.numel(), dtype=torch.float64).view(batch.shape).to(dtype)
        sum((weight * value).sum() for value in found.values()).backward()
        results[name] = ([value.detach() for value in found.values()], [parameter.grad for parameter in model.parameters()])
    assert used[0] is not None and used[1] is None and used[0].ids.numel() < batch.mask.numel() + 30 * 7
    for a, b in zip(results["trees"][0], results["rows"][0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    scale = max(slope.abs().max() for slope in results["rows"][1])
    for a, b in zip(results["trees"][1], results["rows"][1], strict=True):
        assert (a - b).abs().max() < max(tolerance, 3e-6) * scale  # the norms of these models compute in fp32 in any case


def test_only_models_that_take_a_mask_get_one() -> None:
    assert fits(split(tiny_model("qwen3"))) and fits(split(tiny_model("llama")))
    assert not fits(split(tiny_model("gpt2")))
    sliding = tiny_model("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert not fits(split(sliding))
