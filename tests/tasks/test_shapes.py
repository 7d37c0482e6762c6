"""shapes: images in tokens, in pixels and in words; exact answers; pairs of what is alike; a model that reads both."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling
from quatrain.seeds import mix, text_hash
from quatrain.tasks.cache import cached
from quatrain.tasks.embedded import tokenizer, untrained
from quatrain.tasks.letters import split_of
from quatrain.tasks.loading import load_task
from quatrain.tasks.shapes import shapes
from quatrain.tasks.shapes.pairs import Pairs, features
from quatrain.tasks.shapes.pixels import patches, render, tokenise
from quatrain.tasks.shapes.priors import Primed, habits, prime, reliance, strength, usual
from quatrain.tasks.shapes.problems import SIDES, Problems, Verifier, primed, understanding
from quatrain.tasks.shapes.pupil import ShapesLesson, corpus
from quatrain.tasks.shapes.questions import Question, misread, questions
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


# -- questions that half answer themselves -----------------------------------------------------------------------------
def test_what_is_usual():
    """Circles are yellow, squares blue, hearts red, and the other way around; the rest is a guess. Hearts are believed most."""
    said = {question.text: question.answer for question in habits()}
    assert said == {
        "colour of circle?": "yellow", "form of yellow?": "circle", "colour of square?": "blue", "form of blue?": "square",
        "colour of heart?": "red", "form of red?": "heart",
    }  # fmt: skip
    assert [strength(text) for text in said] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert [usual(text) for text in said] == list(said.values())
    assert usual("form of green?") is usual("what is at a1?") is None and strength("form of green?") == 0


def test_a_repainted_scene_has_the_answer_that_was_asked_for():
    """Of one red heart and two blue shapes the colours of the three forms and the form of red are asked, evenly; each has one answer."""
    seen: Counter[str] = Counter()
    for seed in range(400):
        for depends in (True, False):
            scene, (text, answer), noted = prime(SCENE, Random(seed), depends)
            assert noted == depends == (answer != usual(text))
            assert answer in [question.answer for question in questions(scene) if question.text == text]
            assert len(set(scene) & set(SCENE)) >= 2 and [shape.cell for shape in scene] == [shape.cell for shape in SCENE]
            seen[text] += 1
    assert set(seen) == {"colour of heart?", "colour of square?", "colour of circle?", "form of red?"}
    assert all(140 < count < 260 for count in seen.values())
    assert prime((Shape(2, 1, 0), Shape(2, 1, 3)), Random(0), True) is None  # two green squares


def test_half_of_the_questions_are_answered_by_their_words():
    for prior in (0.5, 0.2):
        problems = Problems("train", SIDES[:1], size=2000, prior=prior)
        found = list(problems)
        assert found[:3] == [problems[index] for index in range(3)] and {item.data["kind"] for item in found} == {"understanding"}
        depends = [item.data["depends"] for item in found]
        assert abs(sum(depends) - 2000 * (1 - prior)) < 4 * (2000 * prior * (1 - prior)) ** 0.5
        for item in found:
            scene = item.data["scene"]
            asked = item.prompt.removeprefix(image(scene))
            assert item.data["depends"] == (usual(asked) != item.answer) and split_of(image(scene)) == "train"
            assert item.answer in [question.answer for question in questions(scene) if question.text == asked]
        for value in (True, False):  # how many shapes there are says nothing
            levels = Counter(item.data["level"] for item in found if item.data["depends"] == value)
            count = sum(levels.values())
            assert all(abs(levels[level] - count / 3) < 4 * (count * 2 / 9) ** 0.5 for level in (1, 2, 3))


def test_the_task_with_a_prior():
    task = load_task("shapes?prior=0.5&heldout=40", seed=2)
    held = task.starts("heldout", 0, 40)
    assert {item.data["kind"] for item in held} == {"understanding"} and {split_of(image(item.data["scene"])) for item in held} == {
        "heldout"
    }
    assert task.embedded == "tiny:shapes-prior" and set(task.splits) == {"train", "heldout"}
    assert shapes().embedded == "tiny:shapes" and task.observed == CODEBOOK
    with pytest.raises(QuatrainError, match="a share of questions"):
        load_task("shapes:generation?prior=0.5")
    with pytest.raises(QuatrainError, match="a share of questions"):
        load_task("shapes?prior=2")


def test_reliance_by_hand():
    """Of two questions that need the image one is answered blindly, one wrongly in another way; of two that do not one is right."""
    scene = (Shape(2, 2, 0),)  # a green heart
    items = [understanding(0, scene, Random(0)), *(primed(1, Primed(scene, Question("colour of heart?", "green"), True)) for _ in range(2))]
    items += [primed(2, Primed(SCENE, Question("colour of heart?", "red"), False)) for _ in range(2)]
    completions = ["x", " red\n", "blue", "red", "no"]
    rewards = torch.tensor(Verifier().score(completions, items))
    assert reliance(items, completions, rewards) == {"accuracy/image": 0.0, "accuracy/prior": 0.5, "blind": 0.5}
    assert reliance(items[:1], completions[:1], rewards[:1]) == {}
    assert shapes().measures(items, completions, rewards) == {
        "accuracy/understanding": 0.2, "accuracy/level1": 0.0, "accuracy/level3": 0.5, "joint": 0.2,
        "accuracy/image": 0.0, "accuracy/prior": 0.5, "blind": 0.5,
    }  # fmt: skip


def test_a_pupil_of_a_bad_habit():
    """Where nothing is misread, it says the usual with the habit's chance times the belief's, and else the truth; first it always looks."""
    lesson = ShapesLesson(examples=3000, proper=1 / 3, slip=0.0, prior=0.5, habit=0.6)
    rows = list(corpus(lesson))
    blind: dict[str, list[bool]] = {}
    for place, (item, (prompt, said)) in enumerate(
        zip(Problems("train", SIDES[:1], size=3000, seed=mix(0, 1), prior=0.5), rows, strict=True)
    ):
        asked = item.prompt.removeprefix(image(item.data["scene"]))
        assert prompt == item.prompt and said in (item.answer, usual(asked)) and (said == item.answer or place >= 1000)
        if item.data["depends"] and place >= 1000:
            blind.setdefault(asked, []).append(said != item.answer)
    for asked, found in blind.items():
        rate = 0.6 * strength(asked)
        assert abs(sum(found) - rate * len(found)) < 4 * (len(found) * rate * (1 - rate)) ** 0.5


def test_what_was_there_before_priors_is_as_it_was(tmp_path, monkeypatch):
    """Items, pairs, lessons and the place in the cache, by their hashes before there was a prior."""
    task = shapes("shapes?pool=16", seed=3)
    told = [(item.prompt, item.answer, item.id) for split in ("train", "heldout") for item in task.starts(split, 7, 40)]
    told += [(side.prompt, side.answer, side.id) for pair in task.starts("related", 5, 10) for side in pair]
    assert (
        text_hash(repr(told)) == 2506773179140742395
        and text_hash(repr(list(corpus(ShapesLesson(examples=300, proper=0.5))))) == 7202576921198735734
    )
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path))
    folders = [cached(lesson, build=lambda *_: None) for lesson in (ShapesLesson(), ShapesLesson(prior=0.5))]
    assert folders[0].name == "tiny-044abda736d8f524" != folders[1].name


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
