"""Where a number came from: versions, machine and time, for ``run.json`` and the foot of every report."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("quatrain", "torch", "transformers", "peft", "numpy", "gymnasium", "reasoning-gym", "math-verify")


def provenance() -> dict[str, object]:
    """{"versions": {package: version}, "machine": {…}, "date": …}. Nothing is imported; packages that are absent are left out."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    machine: dict[str, object] = {"system": f"{platform.system()} {platform.machine()}", "cores": _cores()}
    torch = sys.modules.get("torch")
    if torch is not None:
        machine["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            machine["accelerator"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return {"versions": versions, "machine": machine, "date": datetime.now().astimezone().isoformat(timespec="seconds")}


def _cores() -> int:
    """Cores that this process may use, which in a container is often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
