"""The teacher's context: the solution before the problem, the same actions; who has none is left out."""

from __future__ import annotations

import pytest
import torch

from quatrain.batch import Batch
from quatrain.errors import QuatrainError
from quatrain.knobs import resolve
from quatrain.models.causal_lm import CausalLM
from quatrain.protocols import Item, Sampling
from quatrain.rollout.privileged import Privileged, told
from quatrain.rollout.sources import OnPolicy
from quatrain.tasks.text import TextTask
from quatrain.training.state import State
from tests.tiny_models import tiny_model, tiny_tokenizer
from tests.toy import ToyTask

ITEMS = [Item(0, "1+1=", "2", "2"), Item(1, "10+10=", "20", None), Item(2, "2*(3+4)=", "14", "2*7=14")]


class Nothing:
    def score(self, completions: list[str], items: list[Item]) -> list[float]:
        return [0.0] * len(items)


def collected() -> tuple[State, Batch]:
    policy = CausalLM(tiny_model(), tiny_tokenizer())
    state = State(TextTask("sums", ITEMS, None, Nothing()), {"policy": policy})
    return state, resolve(OnPolicy(group=2, prompts=3, max_actions=4), {})(state)


def test_the_context_of_the_teacher():
    state, batch = collected()
    found = Privileged("s: {solution}\n{prompt}")(state, batch)
    assert found["prompt"].tolist() == [key for key in batch["prompt"].tolist() if key != 1] and len(found) == 4
    decode = state.models["policy"].decode
    for row in range(4):
        item = ITEMS[int(found["prompt"][row])]
        texts = {role: decode(part["tokens"][row][part["mask"][row]]) for role, part in found.contexts.items()}
        assert texts == {"policy": item.prompt, "teacher": f"s: {item.solution}\n{item.prompt}"}
    again = found.take([3, 0]).trim()  # it goes where its rows go
    assert torch.equal(again.contexts["teacher"]["tokens"], found.contexts["teacher"]["tokens"][[3, 0]])


def test_a_batch_without_any_solution_is_empty_and_a_table_is_left_alone():
    state, batch = collected()
    rows = batch.take(batch["prompt"] == 1)
    assert len(Privileged()(state, rows)) == 0
    table = ToyTask().rollout(ToyTask().policy(), [0, 1], 2, Sampling(), 0)
    assert Privileged()(state, table) is table


def test_templates():
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "{1}"}]
    assert told("{prompt}\nsolution: {solution}\nnow you:", chat, "{x}")[1]["content"] == "{1}\nsolution: {x}\nnow you:"
    assert told("{solution}|{prompt}", "a{solution}", "b") == "b|a{solution}" and chat[1]["content"] == "{1}"
    with pytest.raises(QuatrainError, match="prompt and the solution"):
        Privileged("solve {prompt}")
    with pytest.raises(QuatrainError, match="demonstrations"):
        Privileged().check(TextTask("sums", [Item(0, "1+1=", "2")], None, Nothing()))
