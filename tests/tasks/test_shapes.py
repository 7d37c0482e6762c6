"""shapes: images in tokens, in pixels and in words; exact answers; pairs of what is alike; a model that reads both."""

from __future__ import annotations

from random import Random

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.seeds import mix
from quatrain.tasks.embedded import tokenizer, untrained
from quatrain.tasks.letters import split_of
from quatrain.tasks.loading import load_task
from quatrain.tasks.shapes import shapes
from quatrain.tasks.shapes.pairs import Pairs, features
from quatrain.tasks.shapes.pixels import patches, render, tokenise
from quatrain.tasks.shapes.problems import Problems, Verifier
from quatrain.tasks.shapes.pupil import ShapesLesson, corpus
from quatrain.tasks.shapes.questions import misread, questions
from quatrain.tasks.shapes.scenes import BLANK, CODEBOOK, Shape, caption, draw, image, likeness, read

SCENE = (Shape(0, 2, 0), Shape(3, 1, 5), Shape(3, 0, 15))


def test_scenes_in_tokens_and_words():
    assert image(SCENE) == "❤····🟦·········🔵" and read(image(SCENE)) == SCENE
    assert caption(SCENE) == "red heart a1, blue square b2, blue circle d4"
    assert read(image(SCENE)[:-1]) is None and read("x" * 16) is None and read(BLANK * 16) == ()
    for seed in range(50):
        scene = draw(Random(seed), 1 + seed % 6)
        assert read(image(scene)) == scene and len(scene) == 1 + seed % 6 and list(scene) == sorted(scene, key=lambda shape: shape.cell)


def test_pixels_there_and_back():
    assert patches().shape == (13, 8, 8, 3) and len(CODEBOOK) == 13
    pixels = render(image(SCENE))
    assert pixels.shape == (32, 32, 3) and 0 <= pixels.min() < pixels.max() <= 1
    assert tokenise(pixels) == image(SCENE)
    assert tuple(pixels[12, 12]) == (0.15, 0.3, 0.9) and tuple(pixels[0, 31]) == (1.0, 1.0, 1.0)  # row b, column 2: blue
    noise = torch.randn(32, 32, 3, generator=torch.Generator().manual_seed(0)).numpy() * 0.15
    assert tokenise(pixels + noise) == image(SCENE)
    for code in CODEBOOK[1:]:
        assert tokenise(render(code + BLANK * 15)) == code + BLANK * 15
    with pytest.raises(QuatrainError, match="no image"):
        render("red")
    with pytest.raises(QuatrainError, match="another shape"):
        tokenise(pixels[:8])


def test_questions_have_one_answer():
    assert {f"{q.text} {q.answer}" for q in questions(SCENE)} == {
        "what is at a1? red heart", "what is at b2? blue square", "what is at d4? blue circle",
        "where is red heart? a1", "where is blue square? b2", "where is blue circle? d4",
        "colour of heart? red", "colour of square? blue", "colour of circle? blue", "form of red? heart",
        "how many red? 1", "how many blue? 2",
    }  # fmt: skip


def test_the_verifier_looks_at_attributes():
    judge, problems = Verifier(), Problems("train", size=40)
    asked, drawn = problems[0], problems[1]
    assert [asked.data["kind"], drawn.data["kind"]] == ["understanding", "generation"]
    assert judge.score([asked.answer, f" {asked.answer}\n", "no"], [asked] * 3) == [1.0, 1.0, 0.0]
    assert judge.score([drawn.answer, "red", BLANK * 16], [drawn] * 3) == [1.0, 0.0, 0.0]
    assert likeness(SCENE[:2], SCENE) == pytest.approx(2 / 3) == likeness(SCENE, SCENE[:2]) and likeness(SCENE, SCENE) == 1
    moved = (SCENE[0]._replace(cell=1), *SCENE[1:])
    assert likeness(moved, SCENE) == pytest.approx(2 / 3)
    for item in problems:
        assert judge(item.answer, item) == 1.0 and judge(BLANK * 16, item) == 0.0


def test_splits_share_no_scene():
    task = shapes("shapes?train=200&heldout=60&pool=8")
    for split in ("train", "heldout"):
        assert {split_of(image(item.data["scene"])) for item in task.starts(split, 0, 60)} == {split}
    assert {split_of(image(side.data["scene"])) for pair in task.starts("related", 0, 10) for side in pair} == {"train"}
    assert {item.data["kind"] for item in shapes("shapes:generation?train=20").starts("train", 0, 20)} == {"generation"}
    assert {item.data["kind"] for item in shapes("shapes:generation").starts("heldout", 0, 20)} == {"generation", "understanding"}
    first, again = (load_task("shapes?pool=16", seed=3).starts("related", 5, 4) for _ in range(2))
    assert first == again != load_task("shapes?pool=16", seed=4).starts("related", 5, 4)


def test_pairs():
    problems = Problems("train", size=30)
    for kind in ("aligned", "retrieved", "related", "random"):
        pairs = Pairs(problems, kind, pool=20)
        ids = [side.id for pair in pairs for side in pair]
        assert sorted(ids) == list(range(60))
        for number, pair in enumerate(pairs):
            assert [side.data["side"] for side in pair] == [0, 1] and {side.data["pair"] for side in pair} == {number}
            assert [side.data["kind"] for side in pair] == ["understanding", "generation"]
            same = pair.understanding.data["scene"] == pair.generation.data["scene"]
            similarity = pair.generation.data["similarity"]
            assert similarity == pair.understanding.data["similarity"]
            if kind == "aligned" or (kind == "related" and number % 2 == 0):
                assert same and similarity == 1.0
            elif kind == "random":
                assert similarity == 1.0
            else:
                scenes = [side.data["scene"] for side in pair]
                cosine = features(pairs.asked) @ features(scenes[1:])[0]
                assert similarity == pytest.approx(cosine.max()) and similarity >= 0.6 and scenes[0] in pairs.asked
                assert similarity == pytest.approx(float(features(scenes[:1])[0] @ features(scenes[1:])[0]))
    with pytest.raises(QuatrainError, match="near enough"):
        Pairs(Problems("train", objects=(6, 6)), "retrieved", pool=1, threshold=0.99)[0]
    with pytest.raises(QuatrainError, match="made otherwise"):
        Pairs(problems, "near")
    with pytest.raises(IndexError):
        pairs[30]


def test_features_by_hand():
    """One shape alone has four ones; another of its colour shares one of them, its twin elsewhere three."""
    one, twin, same_colour = (Shape(0, 2, 0),), (Shape(0, 2, 3),), (Shape(0, 1, 3),)
    cosine = features([one]) @ features([one, twin, same_colour]).T
    assert cosine[0].tolist() == pytest.approx([1.0, 0.75, 0.25])


@pytest.mark.parametrize(
    ("spec", "message"),
    [("shapes:painting", "not a task"), ("shapes?size=3", "no option 'size'"), ("shapes?pool=many", "is a number"),
     ("shapes?objects=3-9", "1 to 6 shapes")],
)  # fmt: skip
def test_specs_are_checked(spec: str, message: str):
    with pytest.raises(QuatrainError, match=message):
        load_task(spec)


def test_a_pupil_and_its_mistakes():
    for seed in range(30):
        wrong = misread(SCENE, Random(seed), 1.0)
        assert misread(SCENE, Random(seed), 0.0) == SCENE and len({shape.cell for shape in wrong}) == 3 and wrong != SCENE
    lesson = ShapesLesson(examples=200, proper=0.5)
    rows = list(corpus(lesson))
    judge, right = Verifier(), []
    for item, (prompt, completion) in zip(Problems("train", objects=lesson.objects, size=200, seed=mix(0, 1)), rows, strict=True):
        assert item.prompt == prompt
        right.append(judge(completion, item) == 1.0)
    assert all(right[:100]) and 40 <= sum(right[100:]) < 95


def test_a_model_reads_and_draws_in_one_vocabulary():
    """Untaught, it makes a batch of both kinds, whose tokens are one per character; ``joint`` is the mean of both accuracies."""
    from quatrain.models.causal_lm import CausalLM

    tokens = tokenizer(CODEBOOK)
    policy = CausalLM(untrained(ShapesLesson(hidden=16, inner=16, layers=1, heads=2, groups=1), tokens), tokens)
    assert len(policy.encode(image(SCENE))) == 16 and policy.decode(policy.encode_completion(image(SCENE))) == image(SCENE)
    task = shapes("shapes?heldout=8")
    batch = task.rollout(policy, [side for pair in task.starts("related", 0, 2) for side in pair], 2, Sampling(max_actions=20), 0)
    assert len(batch) == 8 and torch.isfinite(batch["reward"]).all()
    found = task.evaluate(policy, 8, 0, Sampling(max_actions=4), 0)
    assert found["joint"] == (found["accuracy/understanding"] + found["accuracy/generation"]) / 2
