"""Claims, the verdict rule on planted numbers, and the machinery from a claim to the public table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from quatrain.errors import QuatrainError
from quatrain.experiments import claims as registry
from quatrain.experiments.claims import CLAIMS, Claim, claim
from quatrain.experiments.records import read_records, repository, systems_table, write_table
from quatrain.experiments.reproduce import claims_of, describe, reproduce
from quatrain.experiments.verdicts import judge

SEEDS = range(5)


def numbers(**arms: list[float]) -> dict[str, dict[int, float]]:
    return {label: dict(enumerate(values)) for label, values in arms.items()}


def nothing(seed: int) -> dict[str, float]:
    return {}


def beats(**fields: object) -> Claim:
    return Claim("x", "beats", "x beats y", arms=("x", "y"), measure=nothing, **fields)


Y = [0.50, 0.52, 0.48, 0.51, 0.49]


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        ([0.1, 0.12, 0.09, 0.1, 0.11], "reproduced"),
        ([-0.1, -0.12, -0.09, -0.1, -0.11], "contradicted"),
        ([0.2, -0.1, 0.1, -0.1, 0.0], "inconclusive"),
    ],
)
def test_beats_is_an_interval_above_zero(shift: list[float], word: str):
    x = [a + b for a, b in zip(Y, shift, strict=True)]
    found = judge(beats(), numbers(x=x, y=Y), SEEDS)
    assert found.word == word
    assert found.intervals["y"].value == pytest.approx(np.mean(shift))
    opposite = {"reproduced": "contradicted", "contradicted": "reproduced"}.get(word, word)
    assert judge(beats(higher=False), numbers(x=x, y=Y), SEEDS).word == opposite


def test_four_of_five_is_no_verdict():
    """No rounding up: a mean above zero with an interval across it is inconclusive."""
    found = judge(beats(), numbers(x=[a + b for a, b in zip(Y, [0.1, 0.1, 0.1, 0.1, -0.1], strict=True)], y=Y), SEEDS)
    assert found.word == "inconclusive" and found.intervals["y"].value > 0 and found.better["y"] > 0.5


def test_against_several_the_weakest_decides():
    three = Claim("x", "beats", "", arms=("x", "y", "z"), measure=nothing)
    up, same, down = [y + 0.1 for y in Y], Y, [y + 0.2 for y in Y]
    assert judge(three, numbers(x=up, y=Y, z=Y), SEEDS).word == "reproduced"
    assert (
        judge(three, numbers(x=up, y=Y, z=[v + w for v, w in zip(up, [0.1, -0.1, 0, 0.1, -0.1], strict=True)]), SEEDS).word
        == "inconclusive"
    )
    assert judge(three, numbers(x=up, y=same, z=down), SEEDS).word == "contradicted"


def test_matches_is_within_its_margin():
    near = Claim("x", "matches", "", arms=("x", "y"), measure=nothing, margin=0.05)
    assert judge(near, numbers(x=[y + 0.01 for y in Y], y=Y), SEEDS).word == "reproduced"
    assert judge(near, numbers(x=[y + 0.2 for y in Y], y=Y), SEEDS).word == "contradicted"
    noisy = [y + e for y, e in zip(Y, [0.1, -0.1, 0.05, -0.08, 0.02], strict=True)]
    assert judge(near, numbers(x=noisy, y=Y), SEEDS).word == "inconclusive"  # not found different is not the same


def test_correlates_and_detects_against_chance():
    up = Claim("x", "correlates", "", measure=nothing, metric="rho")
    assert judge(up, numbers(rho=[0.4, 0.5, 0.6, 0.5, 0.4]), SEEDS).word == "reproduced"
    detector = Claim("x", "detects", "", measure=nothing, metric="auroc", chance=0.5)
    assert judge(detector, numbers(auroc=[0.4, 0.6, 0.5, 0.45, 0.55]), SEEDS).word == "inconclusive"
    assert judge(detector, numbers(auroc=[0.4, 0.41, 0.42, 0.4, 0.41]), SEEDS).word == "contradicted"


@pytest.mark.parametrize(("worst", "word"), [(1e-7, "reproduced"), (1e-3, "contradicted"), (float("nan"), "contradicted")])
def test_equal_is_the_largest_error(worst: float, word: str):
    identity = Claim("x", "equal", "", measure=nothing, metric="error", tolerance=1e-6, seeds=3)
    found = judge(identity, numbers(error=[0.0, -worst, 1e-9]), range(3))
    assert found.word == word
    if word == "contradicted" and worst == worst:
        assert describe("error", found.intervals["error"], identity) == "largest error 0.001, tolerance 1e-06"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("wins", {"arms": ("a", "b")}, "kind is one of"),
        ("beats", {"arms": ("a",)}, "two arms"),
        ("detects", {}, "a function measure"),
        ("matches", {"arms": ("a", "b")}, "states a margin"),
        ("beats", {"arms": ("a", "b"), "margin": 0.1}, "states a margin"),
        ("equal", {"measure": nothing}, "a tolerance"),
        ("beats", {"arms": ("a", "b"), "seeds": 2}, "three seeds"),
    ],
)
def test_incomplete_claims_are_refused(kind: str, fields: dict[str, object], message: str):
    with pytest.raises(QuatrainError, match=message):
        Claim("x", kind, "", **fields)


def planted(seed: int, gap: float = 0.3, noise: float = 0.1) -> dict[str, float]:
    random = np.random.default_rng(seed)
    level = random.normal()
    return {"ours": level + gap + noise * random.normal(), "theirs": level}


def missing(seed: int) -> dict[str, float]:
    return {"ours": 1.0}


def test_a_claim_from_its_runs_to_its_record(tmp_path: Path):
    made = Claim("grpo", "beats", "ours is better", arms=("ours", "theirs"), measure=planted, settings={"gap": 0.5}, stand_in="dice")
    found = reproduce(made, out=tmp_path / "runs", results=tmp_path / "results", workers=0, live=False)
    assert found.verdict.word == "reproduced" and found.recorded == tmp_path / "results" / "grpo.json"
    told = json.loads(found.recorded.read_text())
    assert told["numbers"]["ours"] == {str(seed): planted(seed, 0.5)["ours"] for seed in range(5)}
    low = told["intervals"]["theirs"][1]
    assert low > 0 and told["verdict"] == "reproduced" and told["stand_in"] == "dice"
    assert told["versions"]["python"] and told["machine"]["cores"] and told["date"] and told["seconds"] >= 0
    assert read_records(tmp_path / "results")["grpo"]["seeds"] == [0, 1, 2, 3, 4]


def test_fresh_seeds_say_how_often_the_verdict_agrees(tmp_path: Path):
    made = Claim("x", "beats", "", arms=("ours", "theirs"), measure=planted, settings={"gap": 0.5})
    found = reproduce(made, seeds="10-19", out=tmp_path / "runs", results=tmp_path / "results", workers=0, live=False)
    assert [list(block.seeds) for block in found.blocks] == [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19]]
    assert {block.word for block in found.blocks} == {"reproduced"}
    assert found.recorded is None and not (tmp_path / "results").exists()


def test_smoke_records_nothing(tmp_path: Path):
    made = Claim("x", "beats", "", arms=("ours", "theirs"), measure=planted, smoke={"noise": 0.0})
    found = reproduce(made, scale="smoke", out=tmp_path / "runs", results=tmp_path / "results", workers=0, live=False)
    assert found.verdict is not None and list(found.verdict.seeds) == [0, 1] and not (tmp_path / "results").exists()


def test_smoke_is_short_whatever_an_arm_asks_for(tmp_path: Path):
    from quatrain.experiments.reproduce import jobs_for, small

    for found in claims_of("all"):
        if found.measure is None:
            assert all(job.rounds() <= 8 for job in jobs_for(small(found), [0], tmp_path)), found.id


def test_failed_runs_and_missing_numbers_are_no_verdict(tmp_path: Path):
    made = Claim("x", "beats", "", arms=("ours", "theirs"), measure=missing)
    with pytest.raises(QuatrainError, match="was not measured"):
        reproduce(made, out=tmp_path / "a", results=tmp_path / "results", workers=0, live=False)
    arms = Claim("x", "beats", "", arms=("sft", "reinforce"), settings={"task": "gym:CartPole-v1"}, metric="return")
    found = reproduce(arms, scale="smoke", out=tmp_path / "b", results=tmp_path / "results", workers=0, live=False)
    assert found.verdict is None and {arm for arm, *_ in found.failures} == {"sft"} and not (tmp_path / "results").exists()


def test_runs_of_arms(tmp_path: Path):
    keys = {"task": "gym:CartPole-v1", "max_actions": 10}
    made = Claim("x", "matches", "", arms=("reinforce", "grpo:kl=0"), settings=keys, metric="return", margin=500.0)
    found = reproduce(made, scale="smoke", out=tmp_path / "runs", workers=0, live=False)
    assert found.verdict.word == "reproduced"
    assert set(found.numbers) == {"reinforce", "grpo:kl=0"} and len(found.numbers["reinforce"]) == 2


def test_claims_share_the_runs_in_which_nothing_differs(tmp_path: Path):
    from quatrain.experiments.reproduce import jobs_for

    def jobs(*arms: str, **keys: object) -> dict[tuple[str, int], Path]:
        made = Claim("x", "beats", "", arms=arms, settings={"task": "gym:CartPole-v1", **keys}, metric="return")
        return {(job.arm, job.seed): job.folder for job in jobs_for(made, [0, 1], tmp_path)}

    one, two = jobs("reinforce", "grpo:kl=0"), jobs("rloo", "grpo:kl=0")
    assert one["grpo:kl=0", 1] == two["grpo:kl=0", 1] != one["grpo:kl=0", 0]
    assert len({*one.values(), *two.values()}) == 6
    assert not {*one.values()} & {*jobs("reinforce", "grpo:kl=0", steps=3).values()}
    with pytest.raises(QuatrainError, match="do the same"):
        jobs_for(Claim("x", "beats", "", arms={"a": "grpo", "b": "grpo"}, settings={"task": "gym:CartPole-v1"}), [0], tmp_path)


def test_registered_claims_are_complete_and_found_by_name_and_family(monkeypatch: pytest.MonkeyPatch):
    assert {found.id for found in claims_of("all")} == set(CLAIMS) >= {"gspo", "hpt"}
    assert [found.id for found in claims_of("hpt")] == ["hpt"]
    assert "gspo" in {found.id for found in claims_of("estimator")}
    for found in claims_of("all"):
        assert found.says and found.stand_in and found.why, found.id
        assert found.seeds >= 5 or found.kind == "equal"
    with pytest.raises(QuatrainError, match="no claim yet"):
        claims_of("rloo")
    with pytest.raises(QuatrainError, match="'gspo'"):
        claims_of("gspq")
    monkeypatch.setattr(registry, "CLAIMS", dict(CLAIMS))
    with pytest.raises(QuatrainError, match="two claims have one name"):
        claim("gspo", "beats", "", arms=("a", "b"))


def test_the_arms_of_registered_claims_are_recipes_that_exist(tmp_path: Path):
    from quatrain.experiments.reproduce import jobs_for

    for found in claims_of("all"):
        if found.measure is None:
            for job in jobs_for(found, [0], tmp_path):
                assert job.rounds() > 0


def test_the_table_in_the_docs_is_the_one_that_the_records_give():
    assert (repository() / "docs" / "systems.md").read_text() == systems_table(), "run: quatrain reproduce --table"


def test_the_table_has_what_failed_too(tmp_path: Path):
    made = Claim("grpo", "beats", "ours is better", arms=("ours", "theirs"), measure=planted, settings={"gap": -0.5}, why="It is worse.")
    reproduce(made, out=tmp_path / "runs", results=tmp_path / "results", workers=0, live=False)
    text = write_table(tmp_path / "results", tmp_path / "systems.md").read_text()
    assert "contradicted" in text and "It is worse." in text and "`rloo`" in text and "1 contradicted" in text


def test_systems_as_json_have_a_verdict_or_null(tmp_path: Path):
    from quatrain.cli import app

    rows = json.loads(CliRunner().invoke(app, ["systems", "--json"]).output)
    assert all({"id", "family", "paper", "recipe", "verdict"} <= set(row) for row in rows)
    records = read_records()
    for row in rows:
        assert row["verdict"] == (records[row["id"]]["verdict"] if row["id"] in records else None)


def test_a_damaged_record_says_which(tmp_path: Path):
    (tmp_path / "gspo.json").write_text("{")
    with pytest.raises(QuatrainError, match="damaged"):
        read_records(tmp_path)
