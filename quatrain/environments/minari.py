"""Data sets in Minari's layout on disk: FOLDER/data/main_data.hdf5, and metadata.json beside it. Read and written without Minari.

``episode_K`` is a group with ``observations`` [T+1, D], ``actions`` [T, …], ``rewards`` float64 [T], ``terminations`` and
``truncations`` [T], a group ``infos``, and the attributes ``id``, ``seed`` and ``total_steps``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from quatrain.environments.recorded import Recorded, stack
from quatrain.errors import QuatrainError

FILE, META = "main_data.hdf5", "metadata.json"


def read_minari(folder: str | Path) -> Recorded:
    """The episodes of a data set in that folder (the one that holds ``data``), in the order of their numbers.

    Observations and actions of one axis; discrete actions are counted from 0. Rewards become float32.

    Raises QuatrainError for a folder without a data set, another format than hdf5, and spaces that a small network has no use for.
    """
    folder = Path(folder).expanduser()
    place = folder if (folder / FILE).is_file() else folder / "data"
    expected = f"data/{FILE} and data/{META}, as Minari writes them"
    h5py = _h5py()
    try:
        meta = json.loads((place / META).read_text())
        if meta.get("data_format", "hdf5") != "hdf5":
            raise QuatrainError("this data set is in another format", given=meta["data_format"], expected="hdf5")
        first = json.loads(meta["action_space"]).get("start", 0)
        with h5py.File(place / FILE, "r") as file:
            names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name.partition("_")[2]))
            episodes = [_read(file[name], first) for name in names]
    except (OSError, KeyError, ValueError) as error:
        raise QuatrainError("no data set can be read here", given=f"{folder}: {error}", expected=expected) from error
    if not episodes:
        raise QuatrainError("this data set has no episodes", given=folder)
    low, high = meta.get("ref_min_score"), meta.get("ref_max_score")
    return Recorded(stack(episodes), None if low is None or high is None else (low, high), meta.get("dataset_id", folder.name))


def write_minari(folder: str | Path, recorded: Recorded, env_id: str, author: str = "", algorithm: str = "") -> Path:
    """Write the episodes so that Minari loads them as ``dataset_id``, the last parts of the folder's path; the folder is returned.

    Minari looks for the folder in the place that its MINARI_DATASETS_PATH names. Raises QuatrainError if a data set is there already.
    """
    import gymnasium

    place = Path(folder).expanduser() / "data"
    if (place / FILE).exists():
        raise QuatrainError("a data set is there already", given=place / FILE, fix="another folder")
    place.mkdir(parents=True, exist_ok=True)
    batch, h5py = recorded.episodes, _h5py()
    seen = batch.contexts["policy"]["observations"]
    with h5py.File(place / FILE, "w") as file:
        for number in range(len(batch)):
            length = int(batch.mask[number].sum())
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": length})
            group.create_group("infos")
            group["observations"] = seen[number, : length + 1].numpy()
            group["actions"] = batch.actions[number, :length].numpy()
            group["rewards"] = batch["rewards"][number, :length].double().numpy()
            group["terminations"] = batch["terminated"][number, :length].numpy()
            group["truncations"] = batch["truncated"][number, :length].numpy()
    environment = gymnasium.make(env_id)
    scores = recorded.scores or (None, None)
    meta = {
        "total_episodes": len(batch),
        "total_steps": len(recorded),
        "data_format": "hdf5",
        "observation_space": json.dumps(_space(environment.observation_space)),
        "action_space": json.dumps(_space(environment.action_space)),
        "env_spec": environment.spec.to_json(),
        "dataset_size": round((place / FILE).stat().st_size / 1e6, 1),
        "dataset_id": f"{place.parent.parent.name}/{place.parent.name}",
        "algorithm_name": algorithm or recorded.name,
        "author": [author],
        "author_email": [],
        "minari_version": "0.5.4",
        **({"ref_min_score": scores[0], "ref_max_score": scores[1], "num_episodes_average_score": 1000} if recorded.scores else {}),
    }
    environment.close()
    (place / META).write_text(json.dumps(meta))
    return place.parent


def _read(group: Any, first: int) -> dict[str, torch.Tensor]:
    seen, actions = group["observations"], group["actions"]
    if not hasattr(seen, "shape") or not hasattr(actions, "shape") or seen.ndim != 2 or actions.ndim > 2:
        raise QuatrainError(
            "these spaces do not fit a small network", given=group.name, expected="observations [T+1, D], actions [T, D] or [T]"
        )
    flags = {name: torch.from_numpy(group[theirs][:]) for name, theirs in (("terminated", "terminations"), ("truncated", "truncations"))}
    chosen = torch.from_numpy(actions[:])
    return {
        "observations": torch.from_numpy(seen[:]).float(),
        "actions": chosen.float() if actions.ndim == 2 else chosen.long() - first,
        "rewards": torch.from_numpy(group["rewards"][:]).float(),
        "terminated": flags["terminated"],
        "truncated": flags["truncated"] & ~flags["terminated"],
    }


def _space(space: Any) -> dict[str, Any]:
    """A Gymnasium space as Minari writes it."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}
    kind = {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape)}
    return {**kind, "low": space.low.tolist(), "high": space.high.tolist()}


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise QuatrainError("data sets in Minari's layout need h5py", given=str(error), fix="pip install 'quatrain[offline]'") from error
    return h5py
