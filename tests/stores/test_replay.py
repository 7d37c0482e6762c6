"""The replay store: a ring of rows, sampled by seeds, kept bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.stores.replay import Replay, ReplayStore, as_batch, leaves
from quatrain.training import checkpoint


def rows(first: int, count: int, width: int = 1) -> Batch:
    value = torch.arange(first, first + count, dtype=torch.float32)
    return Batch(
        mask=torch.ones(count, width, dtype=torch.bool),
        actions=value[:, None].expand(count, width),
        columns={"rewards": value[:, None].expand(count, width)},
        rows={"seed": value.long()},
        contexts={"policy": {"observations": value[:, None, None].expand(count, width + 1, 2)}},
        notes={"text": tuple(map(str, range(count)))},
    )


def test_the_newest_rows_stay():
    store = Replay(capacity=5)()
    for first in range(0, 12, 4):
        store.add(rows(first, 4))
    assert len(store) == 5 and sorted(store.rows()["seed"].tolist()) == [7, 8, 9, 10, 11]
    store.add(rows(100, 13))
    assert sorted(store.rows()["seed"].tolist()) == [108, 109, 110, 111, 112]
    store.add(rows(200, 1))
    assert sorted(store.rows()["seed"].tolist()) == [109, 110, 111, 112, 200]
    kept = store.rows()
    assert torch.equal(kept["rewards"][:, 0].long(), kept["seed"])
    assert torch.equal(kept.contexts["policy"]["observations"][:, 1, 1].long(), kept["seed"]) and not kept.notes


def test_a_sample_is_a_function_of_its_seed_and_uniform():
    store = ReplayStore(10)
    store.add(rows(0, 10))
    one = store.sample(20_000, 3)
    assert torch.equal(one["seed"], store.sample(20_000, 3)["seed"]) and not torch.equal(one["seed"], store.sample(20_000, 4)["seed"])
    assert (torch.bincount(one["seed"]) / 2000 - 1).abs().max() < 0.1


def test_rows_of_other_widths_and_columns_are_padded():
    store = ReplayStore(4)
    store.add(rows(0, 2))
    store.add(rows(5, 1, width=3).with_columns(extra=torch.ones(1, 3)))
    store.add(rows(6, 1))
    kept = store.rows()
    assert kept.shape == (4, 3) and kept.mask.sum(1).tolist() == [1, 1, 3, 1]
    assert kept["extra"].isnan().all(1).tolist() == [True, True, False, True]


def test_it_comes_back_bit_for_bit(tmp_path: Path):
    store, again = ReplayStore(5), ReplayStore(5)
    store.add(rows(0, 7))
    checkpoint.save(tmp_path, 1, {"store": store.state_dict()})
    again.load_state_dict(checkpoint.load(tmp_path / "step-000001")["store"])
    for one in (store, again):
        one.add(rows(50, 2))
    assert all(torch.equal(value, leaves(again.rows())[name]) for name, value in leaves(store.rows()).items())
    assert torch.equal(store.sample(9, 1).actions, again.sample(9, 1).actions)
    with pytest.raises(QuatrainError, match="store is larger"):
        ReplayStore(4).load_state_dict(store.state_dict())


def test_what_is_empty_says_so():
    store = ReplayStore(3)
    store.add(rows(0, 2).take([]))
    assert len(store) == 0
    for call in (store.rows, lambda: store.sample(1, 0)):
        with pytest.raises(QuatrainError, match="empty"):
            call()
    with pytest.raises(QuatrainError, match="a row at least"):
        ReplayStore(0)


def test_leaves_and_back():
    batch = rows(0, 3)
    assert leaves(as_batch(leaves(batch))).keys() == leaves(batch).keys()
