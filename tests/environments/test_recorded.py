"""Data sets: mixtures of a known quality, Minari's layout there and back, and Minari itself where it is at hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from quatrain.environments.behaviours import SCRIPTS, behaviour
from quatrain.environments.gymnasium import gym_task
from quatrain.environments.minari import read_minari, write_minari
from quatrain.environments.recorded import parse_mixture
from quatrain.errors import QuatrainError
from quatrain.protocols import Sampling

h5py = pytest.importorskip("h5py")
MIXED = "gym:Pendulum-v1?data=0.8*random+0.2*good&size=500"


def test_shares_add_up_and_episodes_are_whole_but_for_the_last():
    found = gym_task(MIXED).recorded
    assert len(found) == 500 and found.episodes.lengths.tolist() == [200, 200, 100]
    assert found.episodes["truncated"].any(1).tolist() == [True, True, False] and not found.episodes["terminated"].any()
    again, other = gym_task(MIXED).recorded, gym_task(MIXED, seed=1).recorded
    assert torch.equal(found.episodes.actions, again.episodes.actions) and not torch.equal(found.episodes.actions, other.episodes.actions)
    assert len(gym_task(MIXED, limit=30).recorded) == 30


def test_observations_are_those_of_the_actions():
    """Pendulum's speed moves by (15 sin θ + 3 u)/20: a row's observation, action and next observation belong together."""
    part = gym_task(MIXED).recorded.episodes
    seen, torque = part.contexts["policy"]["observations"], part.actions[..., 0].clamp(-2, 2)
    after = (seen[:, :-1, 2] + 0.05 * (15 * seen[:, :-1, 1] + 3 * torque)).clamp(-8, 8)
    assert torch.allclose(after[part.mask], seen[:, 1:, 2][part.mask], atol=1e-4)


@pytest.mark.parametrize(("name", "low", "high"), [("random", -1450, -1000), ("medium", -620, -350), ("good", -230, -90)])
def test_qualities_are_in_order(name: str, low: float, high: float):
    task = gym_task("gym:Pendulum-v1")
    made = behaviour(name, "Pendulum-v1", 3, task.action_space)
    value = float(task.rollout(made, task.starts("train", 0, 40), 1, Sampling(max_actions=200), 0)["reward"].mean())
    assert low < value < high
    script = SCRIPTS["Pendulum-v1"]
    assert script.random < script.good


def test_a_return_is_a_percentage_of_the_way():
    found = gym_task(MIXED).recorded
    script = SCRIPTS["Pendulum-v1"]
    assert found.normalised(script.random) == 0 and found.normalised(script.good) == 100
    numbers = gym_task(MIXED).evaluate(behaviour("good", "Pendulum-v1", 3, gym_task(MIXED).action_space), 16)
    assert abs(numbers["normalised"] - 100) < 12
    assert "normalised" not in gym_task("gym:CartPole-v1?data=random&size=40").evaluate(gym_task("gym:CartPole-v1").network(), 2)


def test_what_is_no_data_set_is_refused(tmp_path: Path):
    for text in ("0.8*random", "random+good", "0.5*random+", "0.5*a+0.6*b"):
        with pytest.raises(QuatrainError, match="shares"):
            parse_mixture(text)
    with pytest.raises(QuatrainError, match="no option 'sise'"):
        gym_task("gym:Pendulum-v1?sise=3")
    with pytest.raises(QuatrainError, match="size"):
        gym_task("gym:Pendulum-v1?data=random&size=0")
    with pytest.raises(QuatrainError, match="nobody has written a good controller"):
        _ = gym_task("gym:CartPole-v1?data=good").recorded
    with pytest.raises(QuatrainError, match="no data set"):
        _ = gym_task("gym:CartPole-v1").recorded
    with pytest.raises(QuatrainError, match="no data set can be read"):
        read_minari(tmp_path)


def test_what_is_written_is_read_again(tmp_path: Path):
    for spec in (MIXED, "gym:CartPole-v1?data=random&size=60"):
        task = gym_task(spec)
        folder = write_minari(tmp_path / task.env_id / "mixed-v0", task.recorded, task.env_id)
        back, before = gym_task(f"gym:{task.env_id}?data={folder}").recorded, task.recorded
        assert back.scores == before.scores and torch.equal(back.episodes.mask, before.episodes.mask)
        for name in ("rewards", "terminated", "truncated"):
            assert torch.equal(back.episodes[name], before.episodes[name].to(back.episodes[name]))
        mask, seen = before.episodes.mask, (part.episodes.contexts["policy"]["observations"][:, :-1] for part in (back, before))
        assert torch.equal(back.episodes.actions[mask], before.episodes.actions[mask])
        assert torch.equal(*(part[mask] for part in seen))
        with pytest.raises(QuatrainError, match="there already"):
            write_minari(folder, before, task.env_id)
    with pytest.raises(QuatrainError, match="is not of CartPole"):
        _ = gym_task(f"gym:CartPole-v1?data={tmp_path / 'Pendulum-v1/mixed-v0'}").recorded


# -- against Minari: a Python that has it is named by QUATRAIN_MINARI_PYTHON ---------------------------------------------
MINARI = os.environ.get("QUATRAIN_MINARI_PYTHON", "")
oracle = pytest.mark.skipif(not Path(MINARI).is_file(), reason="QUATRAIN_MINARI_PYTHON names no Python with Minari")
WRITE = """
import gymnasium, minari, sys
env = minari.DataCollector(gymnasium.make("Pendulum-v1"))
env.action_space.seed(0)
for seed in range(2):
    env.reset(seed=seed)
    while not any(env.step(env.action_space.sample())[2:4]):
        pass
made = env.create_dataset("pendulum/theirs-v0", algorithm_name="uniform", author="a", author_email="a@b.c", code_permalink="d",
                          ref_min_score=-1200.0, ref_max_score=-150.0)
"""
READ = """
import json, minari
found = minari.load_dataset("pendulum/ours-v0")
episodes = [{"observations": e.observations.tolist(), "actions": e.actions.tolist(), "rewards": e.rewards.tolist(),
             "ends": [e.terminations.tolist(), e.truncations.tolist()]} for e in found.iterate_episodes()]
print("FOUND" + json.dumps({"episodes": episodes, "steps": int(found.total_steps), "env": found.env_spec.id,
                            "space": str(found.action_space), "low": found.storage.metadata["ref_min_score"]}))
"""


def ask(script: str, place: Path) -> str:
    environment = {**os.environ, "MINARI_DATASETS_PATH": str(place)}
    done = subprocess.run([MINARI, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@oracle
@pytest.mark.slow
def test_we_read_what_minari_writes_and_minari_reads_what_we_write(tmp_path: Path):
    ask(WRITE, tmp_path)
    found = read_minari(tmp_path / "pendulum/theirs-v0")
    assert found.scores == (-1200.0, -150.0) and found.name == "pendulum/theirs-v0" and found.episodes.shape == (2, 200)
    with h5py.File(tmp_path / "pendulum/theirs-v0/data/main_data.hdf5") as file:
        assert file["episode_1/observations"][:].tolist() == found.episodes.contexts["policy"]["observations"][1].tolist()
        assert torch.allclose(found.episodes["rewards"][1].double(), torch.tensor(file["episode_1/rewards"][:]), rtol=1e-6)
    ours = gym_task(MIXED).recorded
    write_minari(tmp_path / "pendulum/ours-v0", ours, "Pendulum-v1")
    theirs = json.loads(ask(READ, tmp_path).split("FOUND")[1])
    assert theirs["steps"] == 500 and theirs["env"] == "Pendulum-v1" and theirs["low"] == ours.scores[0] and len(theirs["episodes"]) == 3
    for row, episode in enumerate(theirs["episodes"]):
        length = int(ours.episodes.lengths[row])
        assert episode["observations"] == ours.episodes.contexts["policy"]["observations"][row, : length + 1].tolist()
        assert episode["actions"] == ours.episodes.actions[row, :length].tolist()
        assert episode["rewards"] == ours.episodes["rewards"][row, :length].tolist()
        assert episode["ends"] == [ours.episodes[name][row, :length].tolist() for name in ("terminated", "truncated")]
