"""Policies with a library in their context: nothing in it is the base policy exactly, and rules say what they say."""

from __future__ import annotations

import copy

import pytest
import torch

from quatrain.environments.tool_choice import ToolChoice
from quatrain.errors import QuatrainError
from quatrain.models.causal_lm import CausalLM
from quatrain.models.control import load_control
from quatrain.models.prompted import prompted
from quatrain.parts.likelihoods import LogProb
from quatrain.protocols import Sampling
from quatrain.search.library import Library, Operation, Rule, read_library
from quatrain.tasks.letters import letters
from tests.tiny_models import tiny_model, tiny_tokenizer

RULE = Operation("add", rule=Rule("1 + 1 = 2", 2.0, (3, 1)))
RULES = Library().apply([RULE])


def tiny_lm() -> CausalLM:
    return CausalLM(tiny_model(), tiny_tokenizer())


def test_an_empty_library_is_the_base_table_exactly():
    task = ToolChoice()
    base, told = task.network(), prompted(task.network(), Library())
    starts = task.starts("train", 0, 30)
    plain, same = (task.rollout(policy, starts, 4, Sampling(), 1) for policy in (base, told))
    assert torch.equal(plain.actions, same.actions) and torch.equal(plain["behaviour_logp"], same["behaviour_logp"])
    assert torch.equal(base.score(plain, [LogProb()])[LogProb()], told.score(plain, [LogProb()])[LogProb()])


def test_a_rule_adds_its_weight_and_leaves_the_weights():
    task = ToolChoice()
    base, told = task.network(), prompted(task.network(), RULES)
    gap = (told.table - base.table).detach()
    assert gap[3, 1] == pytest.approx(2.0) and gap.count_nonzero() == 1
    assert torch.equal(told.module.base.values, base.table)
    batch = task.rollout(told, task.starts("train", 0, 30), 4, Sampling(), 1)
    torch.testing.assert_close(told.score(batch, [LogProb()])[LogProb()].detach(), batch["behaviour_logp"], rtol=1e-12, atol=1e-12)


def test_copies_and_saved_states_have_the_library(tmp_path):
    told = prompted(ToolChoice().network(), RULES)
    twin = told.clone()
    told.library = Library()
    assert twin.library == RULES and len(told.library) == 0
    told.module.load_state_dict(copy.deepcopy(twin.module.state_dict()), strict=False)
    assert told.library == RULES
    told.save(tmp_path)
    assert read_library(tmp_path / "library.json") == RULES
    assert torch.equal(load_control(tmp_path).table, ToolChoice().network().table)
    (tmp_path / "table.pt").write_bytes(b"no table")
    with pytest.raises(QuatrainError, match="no table"):
        load_control(tmp_path)


def test_a_language_model_reads_the_rules_before_its_prompt(tmp_path):
    base = tiny_lm()
    told, task = prompted(base, RULES), letters("letters:chain")
    assert told.encode("2 + 2 =") == base.encode(RULES.text() + "2 + 2 =") and prompted(base, Library()).encode("2") == base.encode("2")
    batch = task.rollout(told, task.starts("train", 0, 2), 2, Sampling(max_actions=4), 0)
    said = base.decode(batch.contexts["policy"]["tokens"][0][batch.contexts["policy"]["mask"][0]].tolist())
    assert "1 + 1 = 2" in said
    scored = told.score(batch, [LogProb()])[LogProb()].detach()
    torch.testing.assert_close(scored, torch.where(batch.mask, batch["behaviour_logp"], 0.0), rtol=1e-4, atol=1e-4)
    told.version += 1
    twin = told.clone()
    assert base.version == twin.version == 1 and twin.library == RULES and twin.base is not base
    told.save(tmp_path)
    assert read_library(tmp_path / "library.json") == RULES


def test_an_empty_library_is_the_base_language_model_exactly():
    base, task = tiny_lm(), letters("letters:chain")
    starts = task.starts("train", 0, 3)
    plain, same = (task.rollout(policy, starts, 2, Sampling(max_actions=4), 0) for policy in (base, prompted(base, Library())))
    assert torch.equal(plain.actions, same.actions) and torch.equal(plain["behaviour_logp"], same["behaviour_logp"])


def test_in_a_chat_the_rules_are_the_users():
    class Chat:
        module = torch.nn.Linear(1, 1)

        def encode(self, prompt):
            return prompt

    told = prompted(Chat(), RULES)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "user", "content": "r"}]
    assert [message["content"] for message in told.encode(messages)] == ["s", RULES.text() + "q", "r"] and messages[1]["content"] == "q"
    with pytest.raises(QuatrainError, match="user's"):
        told.encode(messages[:1])
    with pytest.raises(QuatrainError, match="no library fits"):
        prompted(torch.nn.Linear(1, 1), RULES)
