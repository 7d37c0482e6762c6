"""Policies for control by name: a new small network, a new flow policy, or a saved one of either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from quatrain.errors import QuatrainError, nearest
from quatrain.models.flow import FlowPolicy, load_flow
from quatrain.models.networks import NetworkPolicy, load_network
from quatrain.models.tables import TablePolicy, load_table

FLOW_OPTIONS = {"path": str, "tolerance": float, "steps": int, "chain": int, "noise": float}


def control_policy(name: str, task: Any, seed: int = 0) -> NetworkPolicy:
    """What ``model=`` means where the task makes networks.

        auto, mlp                         a Gaussian or categorical network
        flow   flow?tolerance=0.2&chain=5 a flow policy with these options (see ``FlowPolicy``)
        runs/…/model                      one that was saved

    Raises QuatrainError for anything else, an unknown option or a value that is no number.
    """
    kind, _, query = name.partition("?")
    if name in ("auto", "mlp"):
        return task.network(seed=seed)
    if kind == "flow":
        return FlowPolicy(task.observation_size, task.action_space, seed=seed, **_options(name, query))
    if Path(name).expanduser().is_dir():
        return load_control(name)
    raise QuatrainError(
        "this model does not fit the task",
        given=f"model={name} task={task.name}",
        fix="model=mlp, model=flow or the folder of a saved one for control, a language model for texts",
    )


def load_control(folder: str | Path) -> NetworkPolicy | TablePolicy:
    """The policy that the ``save`` of a network, a flow policy or a table wrote. QuatrainError when the folder holds something else."""
    path = Path(folder).expanduser() / "config.json"
    if (path.parent / "table.pt").is_file():
        return load_table(path.parent)
    kind = json.loads(path.read_text()).get("kind") if path.is_file() else None
    return load_flow(path.parent) if kind == "flow" else load_network(path.parent)


def _options(name: str, query: str) -> dict[str, Any]:
    found = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in FLOW_OPTIONS:
            raise QuatrainError(f"a flow policy has no option {key!r}", given=f"model={name}", fix=nearest(key, FLOW_OPTIONS))
        try:
            found[key] = FLOW_OPTIONS[key](value)
        except ValueError:
            raise QuatrainError(f"option {key!r} of a flow policy is a number", given=f"{key}={value}") from None
    return found
