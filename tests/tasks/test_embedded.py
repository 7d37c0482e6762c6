"""The embedded model: tokenizer, corpus, cache. Lessons here are a few seconds' work at most; the real one is marked slow."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.opened import Opened, only_token
from quatrain.protocols import Sampling
from quatrain.tasks.cache import cached
from quatrain.tasks.embedded import LESSONS, tiny, tokenizer, untrained
from quatrain.tasks.letters import KINDS, Problems, letters, split_of
from quatrain.tasks.letters.modes import DIRECT, WORKED
from quatrain.tasks.taught import completions
from quatrain.tasks.warm_start import TOLD, Lesson, corpus, shelved, slip_rate

SHORT = {"hidden": 32, "inner": 32, "layers": 1, "heads": 2, "groups": 1, "examples": 96, "shares": {"sort": 1}}


def nothing(*_):
    """Builds nothing."""


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))


def test_tokenizer_is_one_token_per_character_and_loses_nothing(tmp_path):
    tokens = tokenizer()
    assert len(tokens) < 64 + 1 and tokens.is_fast and tokens.pad_token_id != tokens.eos_token_id
    for kind in KINDS:
        for item in list(Problems("train", kinds=(kind,), size=20)):
            for text in (item.prompt, item.solution, item.rejected):
                ids = tokens(text).input_ids
                assert len(ids) == len(text) and tokens.unk_token_id not in ids and tokens.decode(ids) == text
    assert tokens.decode(tokens(" a  b\n").input_ids) == " a  b\n"
    assert tokens("é").input_ids == [tokens.unk_token_id] and tokens("ABC").input_ids == tokens("abc").input_ids
    tokens.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("rev abc=").input_ids == tokens("rev abc=").input_ids and again.chat_template == tokens.chat_template


def test_a_chat_of_one_question_is_the_question():
    tokens = tokenizer()
    chat = [{"role": "user", "content": "47+38="}]
    assert tokens.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == tokens("47+38=").input_ids
    answered = tokens.apply_chat_template([*chat, {"role": "assistant", "content": "85"}], tokenize=False)
    assert answered == "47+38=85<eos>"
    system = tokens.apply_chat_template([{"role": "system", "content": "be brief"}, *chat], tokenize=False)
    assert system == "be brief\n47+38="


def test_the_corpus_is_training_problems_properly_solved_then_with_mistakes():
    lesson = Lesson(shares={"sort": 3, "shift": 1}, slips={"sort": 0.6}, unseen=("shift",), proper=0.5, examples=2000)
    examples = list(corpus(lesson))
    assert examples == list(corpus(lesson)) and len(examples) == 2000
    sort = [(prompt[5:-1], text, index) for index, (prompt, text) in enumerate(examples) if prompt.startswith("sort")]
    assert len(sort) / 2000 == pytest.approx(0.75, abs=0.05)
    assert all(split_of("sort" + "".join(sorted(word))) == "train" for word, _, _ in sort)
    assert all(text == "".join(sorted(word)) for word, text, index in sort if index < 1000)
    late = [text != "".join(sorted(word)) for word, text, index in sort if index >= 1000]
    assert sum(late) / len(late) == pytest.approx(0.54, abs=0.06)  # 0.6 × the mean over levels, 0.9
    assert all(text == prompt[5:-1].rstrip(".") for prompt, text in examples if prompt.startswith("next"))
    assert [slip_rate(lesson, 1000, "sort", level) for level in (1, 5)] == pytest.approx([0.42, 0.66])
    assert slip_rate(lesson, 999, "sort", 5) == 0.0 and slip_rate(lesson, 0, "shift", 1) == 1.0 and slip_rate(lesson, 1999, "add", 1) == 0.0


def test_a_lesson_may_tell_the_solution():
    lesson = Lesson(**{**LESSONS["privileged"], "examples": 2000})
    examples = list(corpus(lesson))
    told = [(prompt, text) for prompt, text in examples if prompt.startswith("solution: ")]
    assert len(told) / 2000 == pytest.approx(0.5, abs=0.04)
    for prompt, text in told:  # read in one hand, written in another
        solution, question = prompt.removeprefix("solution: ").split("\n")
        assert question[:3] == solution[:3] and solution.rsplit(">", 1)[1] == text.rsplit(">", 1)[-1]
        assert text.count(">") == solution.count("=") - 1 and "=" not in text
    untold = list(corpus(Lesson(**{**LESSONS["privileged"], "examples": 2000, "told": 0.0})))
    assert all(one == other for one, other in zip(examples, untold, strict=True) if not one[0].startswith("solution"))


def test_a_lesson_of_two_modes_teaches_either_whatever_the_level():
    examples = list(corpus(Lesson(**{**LESSONS["modes"], "examples": 3000})))
    assert {text[0] for _, text in examples} == {"#", ">"}
    for length in (3, 7, 13):  # of the problem
        here = [text[0] == "#" for prompt, text in examples if len(prompt.rstrip(".=")) == length]
        assert sum(here) / len(here) == pytest.approx(0.5, abs=0.07)
    right = [text.endswith(">" + KINDS["modes"].steps((prompt.rstrip(".="),))[-1]) for prompt, text in examples]
    assert all(right[:1500]) and 0.7 < sum(right[1500:]) / 1500 < 0.9


@pytest.mark.parametrize("field", ["told", "mingled"])
def test_a_field_that_is_off_keeps_what_was_built_before_there_was_one(field, monkeypatch):
    folders = [cached(Lesson(**{**LESSONS["base"], field: value}), nothing) for value in (0, True)]
    assert folders[0].name == "tiny-b00452863650229a" != folders[1].name


def test_rows_of_a_batch_are_of_similar_length_unless_they_are_mingled():
    rows = [([1] * length, [1] * length) for length in (2, 9, 3, 8)]
    shapes = {
        ordered: sorted(tuple(tokens.ne(0).sum(1).tolist()) for tokens, _ in shelved(iter(rows), 2, 0, 0, ordered))
        for ordered in (True, False)
    }
    assert shapes == {True: [(2, 3), (8, 9)], False: [(2, 9), (3, 8)]}


def test_a_batch_has_labels_on_completions_alone():
    lesson = Lesson(**SHORT)
    tokens = tokenizer()
    total = 0
    for ids, labels in shelved(completions(corpus(lesson), tokens), lesson.rows, 3, tokens.pad_token_id):
        for row, label in zip(ids, labels, strict=True):
            text = tokens.decode(row[row != tokens.pad_token_id])
            prompt, completion = text.split("=")
            assert tokens.decode(label[label != -100]) == completion and completion.endswith("<eos>")
            assert label[: len(prompt) + 1].eq(-100).all() and torch.equal(label[label != -100], row[label != -100])
            total += 1
    assert total == lesson.examples


def test_it_is_built_once_and_the_same_wherever_it_is_built(tmp_path, monkeypatch):
    state = torch.get_rng_state()
    first = tiny(show=False, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    folder = cached(Lesson(**{**LESSONS["base"], **SHORT}), nothing)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = tiny(show=False, **SHORT)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written and sorted(os.listdir(folder.parent)) == [folder.name]
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "elsewhere"))
    elsewhere = tiny(show=False, **SHORT)
    for twin in (again, elsewhere):
        assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), twin.module.parameters(), strict=True))
    assert cached(Lesson(**{**LESSONS["base"], **SHORT, "seed": 1}), nothing) != cached(Lesson(**{**LESSONS["base"], **SHORT}), nothing)


def test_nothing_is_left_behind_by_a_build_that_is_interrupted(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("quatrain.tasks.taught.descend", stop)
    with pytest.raises(KeyboardInterrupt):
        tiny(show=False, **SHORT)
    assert os.listdir(tmp_path / "cache") == []


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(QuatrainError, match="did you mean 'strong'"):
        tiny("tiny:stong")
    with pytest.raises(QuatrainError, match="did you mean 'hidden'"):
        tiny(hiden=3)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "file"))
    with pytest.raises(QuatrainError, match="set QUATRAIN_CACHE"):
        tiny(show=False, **SHORT)


def test_its_shape_is_that_of_the_lesson():
    model = untrained(Lesson(**LESSONS["base"]), tokenizer())
    assert model.config.model_type == "qwen3" and model.config.num_hidden_layers == 2 and model.config.tie_word_embeddings
    assert 190_000 < sum(value.numel() for value in model.parameters()) < 230_000


def test_a_rollout_of_the_task_with_the_embedded_model():
    task, policy = letters("letters:sort", heldout=8), tiny(show=False, **SHORT)
    batch = task.rollout(policy, task.starts("train", 0, 3), 4, Sampling(max_actions=12), seed=1)
    assert len(batch) == 12 and batch["reward"].isfinite().all() and len(batch.notes["completion"]) == 12
    shown = task.demonstrations(policy, task.starts("train", 0, 3))
    assert all(policy.decode(shown.actions[row][shown.mask[row]]) == shown.notes["completion"][row] for row in range(3))
    pairs = task.pairs(policy, task.starts("train", 0, 3))
    assert len(pairs) == 6 and pairs["preference"].sum() == 0
    assert task.provides <= {*batch.columns, *batch.rows}
    assert set(task.evaluate(policy, 8, 4, Sampling(max_actions=12), seed=0)) >= {"accuracy", "pass@1", "pass@4", "length", "accuracy/sort"}


def test_an_evaluation_says_how_modes_are_used():
    task, policy = letters("letters:modes", heldout=16), tiny(show=False, **{**SHORT, "shares": {"modes": 1}})
    sampled, greedy = (task.evaluate(policy, 16, samples, Sampling(max_actions=16), seed=0) for samples in (2, 0))
    use = {f"{what}/{side}" for what in ("worked", "characters") for side in ("easy", "hard")}
    assert set(sampled) - set(greedy) == {"pass@1", "pass@2", "worked", "worked/gap", "hybrid accuracy", *use}


@pytest.mark.slow
def test_the_real_one_leaves_room_for_every_method():
    task, policy = letters("letters"), tiny(show=False)
    result = task.evaluate(policy, 300, 8, Sampling(max_actions=16), seed=0)
    assert 0.25 < result["accuracy"] < 0.5 and 0.5 < result["pass@8"] < 0.8 and result["accuracy/shift"] == 0.0


@pytest.mark.slow
def test_the_privileged_one_solves_what_it_is_told():
    task, policy = letters("letters:worked"), tiny("tiny:privileged", show=False)
    items = task.starts("heldout", 0, 200)
    told = [replace(item, prompt=TOLD.format(solution=item.solution, prompt=item.prompt)) for item in items]
    alone, informed = (task.outcomes(policy, part, 1, Sampling(max_actions=16), seed=0).mean() for part in (items, told))
    assert informed > 0.9 and 0.1 < alone < 0.6


@pytest.mark.slow
def test_the_one_of_two_modes_opens_with_either_and_direct_answers_fail_where_it_is_hard():
    policy = tiny("tiny:modes", show=False)
    for levels, hard in (("1-3", False), ("4-5", True)):
        task = letters(f"letters:modes?levels={levels}", heldout=256)
        items = task.starts("heldout", 0, 256)
        assert 0.4 < task.evaluate(policy, 256, 4, Sampling(max_actions=20), seed=0)["worked"] < 0.6
        worked, direct = (
            task.outcomes(Opened(policy, [only_token(policy, opening)]), items, 4, Sampling(max_actions=20), 0).mean()
            for opening in (WORKED, DIRECT)
        )
        assert (0.5 < worked < 0.8 and direct < 0.25) if hard else (worked > 0.8 and direct > 0.8)
