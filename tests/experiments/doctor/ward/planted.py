"""Everything that is planted: name → bug."""

from __future__ import annotations

from tests.experiments.doctor.ward.data import DATA
from tests.experiments.doctor.ward.masks import MASKS, TOKENS
from tests.experiments.doctor.ward.planting import Bug
from tests.experiments.doctor.ward.rewards import REWARD
from tests.experiments.doctor.ward.sampler import SAMPLER, TRANSFER
from tests.experiments.doctor.ward.training import DRIFT, SCALE

PLANTED: dict[str, Bug] = {**SAMPLER, **DRIFT, **SCALE, **MASKS, **TOKENS, **TRANSFER, **REWARD, **DATA}
