"""TextTask against a fake policy whose completions are known."""

import pytest
import torch

from quatrain.batch import Batch, Origin
from quatrain.errors import QuatrainError
from quatrain.protocols import Item, Sampling
from quatrain.tasks.text import TextTask, pass_at_k


class Echo:
    """Characters are tokens. A sampled completion is the prompt's first character plus the parity of the row's seed;
    a greedy one is the prompt itself."""

    def encode(self, prompt):
        return [ord(c) for c in (prompt if isinstance(prompt, str) else prompt[-1]["content"])]

    def decode(self, tokens):
        return "".join(map(chr, tokens))

    def sample(self, prompts, group, sampling, seeds):
        assert len(seeds) == len(prompts) * group
        rows = [prompt for prompt in prompts for _ in range(group)]
        if sampling.temperature:
            rows = [[row[0], ord("01"[int(seed) % 2])] for row, seed in zip(rows, seeds, strict=True)]
        return pack(rows)

    def demonstrate(self, prompts, completions):
        return pack([self.encode(text) for text in completions])


def pack(rows):
    mask = torch.zeros(len(rows), max(1, max(map(len, rows))), dtype=torch.bool)
    actions = mask.long()
    for row, tokens in enumerate(rows):
        mask[row, : len(tokens)] = True
        actions[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
    return Batch(mask, actions, columns={"behaviour_logp": actions * 0.0}, contexts={"policy": {"tokens": actions}})


class Exact:
    def score(self, completions, items):
        return [float(completion == item.answer) for completion, item in zip(completions, items, strict=True)]


def items(count, **fields):
    return [Item(id=i, prompt=chr(97 + i), answer=chr(97 + i) + "1", **fields) for i in range(count)]


def task(train=None, heldout=None, seed=0):
    return TextTask("echo", train or items(5), heldout or items(4), Exact(), seed)


def test_starts_depend_on_position_alone_and_cover_every_epoch():
    whole = [item.id for item in task().starts("train", 0, 15)]
    other = task()
    assert [other.starts("train", cursor, 1)[0].id for cursor in (14, 3, 7, 0)] == [whole[i] for i in (14, 3, 7, 0)]
    assert [item.id for item in other.starts("train", 4, 3)] == whole[4:7]  # across the end of an epoch
    epochs = [whole[:5], whole[5:10], whole[10:]]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    many = task(items(20))
    first, second = many.starts("train", 0, 20), many.starts("train", 20, 20)
    assert first != second and first != task(items(20), seed=1).starts("train", 0, 20)
    assert task().starts("heldout", 0, 4) == task().starts("heldout", 4, 4)


def test_a_source_without_end_is_read_in_order():
    class Endless:
        def __getitem__(self, index):
            return Item(id=index, prompt=str(index))

    endless = task(train=Endless())
    assert endless.size("train") is None
    assert [item.id for item in endless.starts("train", 10**12, 2)] == [10**12, 10**12 + 1]


def test_rollout_rows_are_ordered_start_by_start_with_rewards_and_texts():
    batch = task().rollout(Echo(), items(3), 4, Sampling(), seed=7)
    assert batch["prompt"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.notes["prompt"] == tuple("aaaabbbbcccc") and batch.notes["answer"][4] == "b1"
    parity = batch["seed"] % 2
    assert torch.equal(batch["reward"], parity.float()) and 0 < parity.sum() < 12
    assert batch.notes["completion"][0] == "a" + str(int(parity[0]))


def test_a_row_is_regenerated_by_seed_item_and_member_whatever_surrounds_it():
    echo, three = Echo(), items(3)
    together = task().rollout(echo, three, 4, Sampling(), seed=7)["seed"]
    alone = task().rollout(echo, three[1:2], 4, Sampling(), seed=7)["seed"]
    assert torch.equal(together[4:8], alone)
    assert torch.equal(task().rollout(echo, three[:1], 2, Sampling(), seed=7)["seed"], together[:2])
    assert not torch.equal(task().rollout(echo, three, 4, Sampling(), seed=8)["seed"], together)
    twice = task().rollout(echo, [three[0], three[0]], 4, Sampling(), seed=7)["seed"]
    assert torch.equal(twice[:4], together[:4]) and len(set(twice.tolist())) == 8


def test_demonstrations_are_the_items_that_have_a_solution():
    some = [Item(id=3, prompt="a", solution="xy"), Item(id=4, prompt="b"), Item(id=5, prompt="c", solution="z")]
    batch = task(train=some).demonstrations(Echo(), some)
    assert batch["prompt"].tolist() == [3, 5] and "reward" not in batch and batch.notes["completion"] == ("xy", "z")
    assert batch["origin"].tolist() == [[Origin.DEMONSTRATION] * 2, [Origin.DEMONSTRATION, 0]]
    none = task(train=some).demonstrations(Echo(), some[1:2])
    assert len(none) == 0 and len(Batch.cat([none, batch])) == 2
    with pytest.raises(QuatrainError, match="no demonstrations"):
        task().demonstrations(Echo(), items(2))


def test_pairs_are_adjacent_rows_with_a_key_of_their_own():
    pair = Item(id=3, prompt="a", chosen="good", rejected="bad")
    batch = task(train=[pair]).pairs(Echo(), [pair, pair, Item(id=4, prompt="b")])
    assert batch.notes["completion"] == ("good", "bad", "good", "bad") and batch["preference"].tolist() == [1, -1, 1, -1]
    keys = batch["pair"].tolist()
    assert keys[0] == keys[1] != keys[2] == keys[3] and batch["prompt"].tolist() == [3] * 4
    with pytest.raises(QuatrainError, match="no preference pairs"):
        task().pairs(Echo(), items(2))


def test_evaluate_counts_greedy_and_sampled_solutions():
    held = [Item(id=i, prompt="ab"[i % 2], answer="a", data={"kind": "xy"[i % 2], "level": 1 + (i > 2)}) for i in range(4)]
    result = task(heldout=held).evaluate(Echo(), count=100, samples=4, sampling=Sampling(), seed=0)
    assert result["accuracy"] == 0.5 and result["accuracy/x"] == 1.0 and result["accuracy/y"] == 0.0
    assert result["accuracy/level1"] == pytest.approx(2 / 3) and result["accuracy/level2"] == 0.0
    assert result["pass@1"] == result["pass@4"] == 0.0 and result["length"] == 2.0
    right = task().evaluate(Echo(), count=3, samples=4, sampling=Sampling(), seed=0)
    rewards = task().outcomes(Echo(), task().starts("heldout", 0, 3), 4, Sampling(), seed=0)
    assert right["pass@1"] == pytest.approx(rewards.mean().item())
    assert right["pass@4"] == pytest.approx((rewards.sum(1) > 0).double().mean().item())
    assert "pass@2" in right and right["accuracy"] == 0.0
    assert set(task().evaluate(Echo(), count=3, samples=0, sampling=Sampling(), seed=0)) == {"accuracy", "reward", "length"}


def test_a_task_may_measure_more_of_its_greedy_completions(monkeypatch):
    """Each item is seen beside its own completion (here its prompt) and reward, with and without samples, in any number of calls."""

    class Lettered(TextTask):
        def measures(self, items, completions, rewards):
            assert list(completions) == [item.prompt for item in items] and rewards.tolist() == [item.prompt == "a" for item in items]
            return super().measures(items, completions, rewards) | {"b": sum(text == "b" for text in completions) / len(items)}

    monkeypatch.setattr("quatrain.tasks.text.ROWS_AT_ONCE", 4)
    held = [Item(id=i, prompt="abc"[i % 3], answer="a", data={"level": 2}) for i in range(6)]
    for samples in (0, 2):
        result = Lettered("x", items(2), held, Exact()).evaluate(Echo(), 6, samples, Sampling(), 0)
        assert result["b"] == result["accuracy"] == result["accuracy/level2"] == pytest.approx(1 / 3)


def test_a_task_may_measure_more_of_its_samples():
    class Parity(TextTask):
        def measures_of_samples(self, policy, items, completions, sampling, seed):
            assert [text[0] for text in completions] == [item.prompt for item in items for _ in range(4)]
            assert (sampling, seed) == (Sampling(top_p=0.5), 9) and isinstance(policy, Echo)
            return {"ones": sum(text.endswith("1") for text in completions) / len(completions)}

    parity = Parity("x", items(5), items(4), Exact())
    found = parity.evaluate(Echo(), 3, 4, Sampling(top_p=0.5), seed=9)
    assert found["ones"] == found["pass@1"] and "ones" not in parity.evaluate(Echo(), 3, 0, Sampling(), seed=9)


def test_outcomes_do_not_depend_on_how_rows_are_split_into_calls(monkeypatch):
    whole = task().outcomes(Echo(), items(5), 4, Sampling(), seed=1)
    monkeypatch.setattr("quatrain.tasks.text.ROWS_AT_ONCE", 8)
    assert torch.equal(task().outcomes(Echo(), items(5), 4, Sampling(), seed=1), whole)


def test_pass_at_k_is_the_mean_over_all_subsets():
    from itertools import combinations

    flags = [True, False, False, True, False, False]
    for k in range(1, 7):
        subsets = [any(subset) for subset in combinations(flags, k)]
        assert pass_at_k(torch.tensor([2]), 6, k).item() == pytest.approx(sum(subsets) / len(subsets))


def test_refusals_say_what_there_is():
    with pytest.raises(QuatrainError, match="did you mean 'heldout'"):
        task().starts("held-out", 0, 1)
    with pytest.raises(QuatrainError, match="no split"):
        TextTask("x", items(1), None, Exact()).evaluate(Echo(), 1, 1, Sampling(), 0)
    with pytest.raises(QuatrainError, match="no train items"):
        TextTask("x", [], None, Exact())
