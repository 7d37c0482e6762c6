"""``quatrain doctor``: the invariants of training, checked on the user's own model, task, reward and recipe in about a minute."""

from quatrain.experiments.doctor.examination import doctor
from quatrain.experiments.doctor.finding import Examination, Finding

__all__ = ["Examination", "Finding", "doctor"]
