"""scope-rl through the ordinary driver: its values against counting, its estimates against exact ones, what it leaves in the folder."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from quatrain.environments.tables.task import table_task
from quatrain.errors import QuatrainError
from quatrain.evaluation.off_policy.table import Logs, contributions, distributions
from quatrain.evaluation.off_policy.tabular import count, tabular_values
from quatrain.experiments.miniatures.off_policy import errors, tails, told_apart
from quatrain.knobs import resolve
from quatrain.models.choice_values import make_choice_values
from quatrain.protocols import Sampling
from quatrain.reports.tables import interval_plot, read_tables
from quatrain.seeds import derive
from quatrain.training.candidates import Candidate
from quatrain.training.registry import make
from quatrain.training.run import train
from quatrain.training.state import State

KEYS = {"task": "tables:rtb?horizon=4&budget=4", "trajectories": 200, "steps": 12, "live": False, "tensorboard": False, "eval_every": 0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train("scope-rl", out=str(tmp_path_factory.mktemp("scope") / "run"), **KEYS)


def test_its_fitted_values_are_those_of_counting(finished):
    state = finished.state
    batch, q = state.stores["fresh"], state.models["q"].module.values.detach()
    logs = Logs.of(batch, tuple(q.shape[1:]))
    counts = count(logs.states, logs.actions, logs.rewards, logs.ended, logs.mask, logs.shape)
    policies = torch.stack([state.models[f"candidate{k}"].table.detach().softmax(-1) for k in range(6)])
    exact = tabular_values(counts, policies, sweeps=4)
    seen = counts.visits > 0
    assert (q - exact)[:, seen].abs().max() < 0.15 * exact.abs().max()


def test_its_estimates_are_near_the_exact_values(finished):
    task, state = finished.state.task, finished.state
    for k in range(6):
        true = task.value(state.models[f"candidate{k}"])
        for kind in ("dm", "sn-dr", "sam-is"):
            assert finished.metrics[f"ope/candidate{k}/{kind}"] == pytest.approx(true, abs=0.35 * max(true, 1))
    assert finished.metrics["ope/rank correlation/dr"] > 0.7
    assert torch.equal(state.models["policy"].table, task.network(seed=0).table)  # nothing learns but q


def test_its_tables_are_in_the_folder_and_on_the_page(finished):
    tables = read_tables(finished.folder)
    assert list(tables) == ["Estimated values", "Choosing by estimates", "Distributions of returns"]
    values = tables["Estimated values"]
    assert values[0]["estimator"] == "true value" and values[2]["candidate1"].low < values[2]["candidate1"].high
    assert (finished.folder / "estimated-values.png").stat().st_size > 10_000
    page = (finished.folder / "report.html").read_text()
    assert "Choosing by estimates" in page and "SharpeRatio@3" in page
    json.loads((finished.folder / "tables.json").read_text())
    assert interval_plot(tables["Choosing by estimates"]) is None
    (finished.folder / "tables.json").write_text("{")
    with pytest.raises(QuatrainError, match="damaged"):
        read_tables(finished.folder)
    assert read_tables(finished.folder / "model") == {}


def test_cut_and_resumed_its_numbers_are_the_same(tmp_path):
    keys = {**KEYS, "trajectories": 40, "steps": 4, "report": False, "save_every": 1}
    whole = train("scope-rl", out=str(tmp_path / "whole"), **keys)
    last = sorted((tmp_path / "whole" / "checkpoints").iterdir())[-1]
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    resumed = train("scope-rl", out=str(tmp_path / "whole"), resume=True, **keys)
    assert torch.equal(whole.state.models["q"].module.values, resumed.state.models["q"].module.values)
    assert {name: value for name, value in whole.metrics.items() if name.startswith("ope/") and value == value} == {
        name: value for name, value in resumed.metrics.items() if name.startswith("ope/") and value == value
    }


def test_the_log_is_the_same_in_every_round():
    task = table_task("rtb", {"horizon": 3})
    state = State(task, {"policy": task.network()}, seed=5)
    source = make("scope-rl").stages[0].steps[0].source
    source = resolve(source, {"trajectories": 7})
    first, second = source(state), source(state)
    assert torch.equal(first.actions, second.actions) and state.spent == {"logged": 7} and "tokens" not in state.spent
    assert derive(5, "logged") != derive(6, "logged")


def test_of_the_behaviour_policy_every_estimator_but_the_direct_one_is_the_mean_return():
    task = table_task("rtb", {"horizon": 4})
    policy = task.network()
    batch = task.rollout(policy, task.starts("train", 0, 100), 1, Sampling(max_actions=4), 0)
    chance = policy.table.detach().softmax(-1)
    logs = Logs.of(batch, tuple(chance.shape))
    found = contributions(logs, chance, torch.zeros_like(chance))
    mean = float(batch["reward"].mean())
    for kind in ("tis", "pdis", "dr", "sn-tis", "sn-pdis", "sn-dr"):
        assert float(found[kind].mean()) == pytest.approx(mean), kind
    grid = torch.arange(13).double()
    cdfs = distributions(logs, chance, torch.zeros_like(chance), grid)
    plain = (batch["reward"][:, None] <= grid).double().mean(0)
    torch.testing.assert_close(cdfs["tis"], plain)
    torch.testing.assert_close(cdfs["sn-tis"], plain)


def test_candidates_are_relatives_of_the_policy():
    task = table_task("rtb", {"horizon": 2})
    policy = task.network()
    twin = Candidate(sharpness=-2.0)({"policy": policy}, {})
    torch.testing.assert_close(twin.table, -2 * policy.table)
    assert not torch.equal(Candidate(noise=0.5, seed=1)({"policy": policy}, {}).table, Candidate(noise=0.5)({"policy": policy}, {}).table)


def test_what_it_cannot_judge_is_refused(tmp_path):
    with pytest.raises(QuatrainError, match="few actions"):
        train("scope-rl", task="letters:add", out=str(tmp_path / "no"), live=False)
    with pytest.raises(QuatrainError, match="few actions"):
        make_choice_values(object())


def test_miniatures_measure_what_their_claims_say():
    found = errors(0, horizon=8, trajectories=150)
    assert found["dr, marginal"] == max(found["dr"], found["sam-dr"])
    near = tails(1, horizon=3, trajectories=2000)
    assert near["sn-tdr"] == pytest.approx(near["exact"], abs=0.15)
    told = told_apart(0, horizon=4, draws=30)
    assert told["error"] < 1e-9 and told["rank"] < 1e-9 and 0.5 < told["score"] <= 1
