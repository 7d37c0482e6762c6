"""Trees of rollouts as data: lineage, what was sampled once, advantages over subtrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.parts.advantages import Centred, GroupRelative
from quatrain.parts.trees import SubtreeRelative, lineage, sampled_once

NAN = float("nan")


def leaves(node: list[list[int]], reward: list[float], prompt: list[int] | None = None, mask: Tensor | None = None) -> Batch:
    node = torch.tensor(node)
    mask = node >= 0 if mask is None else mask
    rows = {"reward": torch.tensor(reward, dtype=torch.float64), "prompt": torch.tensor(prompt or [0] * len(reward))}
    return Batch(mask, torch.zeros_like(node), {"node": node}, rows)


FOUR = [[1, 1, 3], [1, 1, 4], [2, 2, 5], [2, 2, 6]]


def test_four_leaves_by_hand():
    """Rewards 1, 0, 0, 0 in two subtrees: at the root (¾, −¼, −¼, −¼), below it (½, −½, 0, 0)."""
    batch = leaves(FOUR, [1.0, 0.0, 0.0, 0.0])
    assert SubtreeRelative()(batch).tolist() == [0.625, -0.375, -0.125, -0.125]
    assert SubtreeRelative().needs == ("prompt", "reward", "node")
    # sizes 4 and 2: (4·¾ + 2·½)/6 …
    assert SubtreeRelative("size")(batch).tolist() == pytest.approx([4 / 6, -2 / 6, -1 / 6, -1 / 6])
    # the second subtree has no spread: the root alone counts for it
    assert SubtreeRelative(drop=True)(batch).tolist() == [0.625, -0.375, -0.25, -0.25]
    assert GroupRelative(scale="none")(batch).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_a_level_gives_nothing_to_what_its_leaves_share():
    batch = leaves(FOUR, [1.0, 0.0, 0.5, 0.25])
    below = 2 * SubtreeRelative()(batch) - GroupRelative(scale="none")(batch)  # level 1 alone
    assert below.tolist() == [0.5, -0.5, 0.125, -0.125] and below.view(2, 2).sum(1).tolist() == [0.0, 0.0]


def plain(batch: Batch, weight: str, drop: bool) -> Tensor:
    """Leaf by leaf, over sets of leaves with equal beginnings."""
    reward, prompt = batch["reward"], batch["prompt"].tolist()
    keys = []
    for row in range(len(batch)):
        nodes = [int(n) for n in batch["node"][row][batch.mask[row]]]
        path = [n for i, n in enumerate(nodes) if i == 0 or nodes[i - 1] != n]
        keys.append([(prompt[row], *path[:k]) for k in range(len(path) + 1)])
    found = []
    for row, levels in enumerate(keys):
        terms = []
        for level, key in enumerate(levels):
            group = [float(reward[j]) for j in range(len(keys)) if key in keys[j] and not reward[j].isnan()]
            if level == 0 or (len(group) > 1 and not (drop and max(group) == min(group))):
                terms.append((len(group) if weight == "size" else 1, float(reward[row]) - sum(group) / len(group)))
        found.append(sum(w * a for w, a in terms) / sum(w for w, _ in terms))
    return torch.tensor(found, dtype=torch.float64)


def random_tree(seed: int) -> Batch:
    """Three prompts of six leaves, one to four segments of one to three actions, holes, one leaf without a reward."""
    g = torch.Generator().manual_seed(seed)
    rows, lengths = [], {}
    for prompt in range(3):
        for _ in range(6):
            path, key = [], (prompt,)
            for _ in range(int(torch.randint(1, 5, (1,), generator=g))):
                key = (*key, int(torch.randint(2, (1,), generator=g)))
                name, length = lengths.setdefault(key, (len(lengths) * 3 + 2, int(torch.randint(1, 4, (1,), generator=g))))
                path += [name] * length
            rows.append([*path, len(lengths) * 3 + 100_000 + len(rows)])  # a node of its own at the end
    width = max(map(len, rows))
    node = [[*row, *[-1] * (width - len(row))] for row in rows]
    reward = torch.randint(0, 2, (18,), generator=g).double()
    reward[7] = NAN
    batch = leaves(node, reward.tolist(), [p for p in range(3) for _ in range(6)])
    hole = torch.rand(batch.shape, generator=g) < 0.15
    return Batch(batch.mask & (~hole | (torch.arange(width) == 0)), batch.actions, batch.columns, batch.rows)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("weight", ["average", "size"])
@pytest.mark.parametrize("seed", range(4))
def test_random_trees(seed: int, weight: str, drop: bool):
    batch = random_tree(seed)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    found, expected = SubtreeRelative(weight, drop)(batch), plain(batch, weight, drop)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(SubtreeRelative(weight, drop)(batch.take(order)), found[order], equal_nan=True)
    assert found[7].isnan() and (found.nan_to_num().abs() > 0).any()


@pytest.mark.parametrize("weight", ["average", "size"])
def test_branching_at_the_root_alone_is_the_group_baseline(weight: str):
    batch = leaves([[1, 5], [2, 6], [3, 7], [4, 8]], [1.0, 0.0, 0.5, 0.0])
    assert torch.equal(SubtreeRelative(weight)(batch), GroupRelative(scale="none")(batch))
    alone = leaves([[1, 5]], [1.0])
    assert SubtreeRelative(weight)(alone).tolist() == [0.0]


def test_a_segment_that_does_not_branch_counts_again():
    """0 and 1 share two segments, 2 parts at once: (⅔ + 2·½)/3 …"""
    batch = leaves([[1, 2, 4], [1, 2, 5], [3, 6, 7]], [1.0, 0.0, 0.0])
    assert SubtreeRelative()(batch).tolist() == pytest.approx([(2 / 3 + 1) / 3, (-1 / 3 - 1) / 3, -1 / 3])


def test_whitened_over_the_actions():
    """Mean 0 and deviation 1 over actions, long leaves counting more."""
    batch = leaves([[1, 1, 3], [1, 1, -1], [2, -1, -1], [2, 2, 6]], [1.0, 0.0, 0.0, 0.0])
    found = Centred(SubtreeRelative(), scale=True)(batch)[batch.mask]
    assert found.mean().abs() < 1e-12 and found.std(correction=0) == pytest.approx(1.0, abs=1e-6)


def test_what_is_sampled_once():
    batch = leaves([[1, 1, 3], [1, 1, 4], [2, 2, 5], [2, 2, -1]], [0.0] * 4)
    assert sampled_once(batch).int().tolist() == [[1, 1, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0]]
    apart = leaves([[1, 1], [2, 2]], [0.0] * 2)
    assert torch.equal(sampled_once(apart), apart.mask)


def test_what_lies_between_actions_parts_no_node():
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    batch = leaves([[3, 9, 3, 4], [0, 5, 6, 0]], [0.0, 1.0], mask=mask)
    assert lineage(batch).tolist() == [[3, 4], [5, 6]]


def test_an_unknown_weight():
    with pytest.raises(QuatrainError, match="weight of a tree's levels"):
        SubtreeRelative("depth")
