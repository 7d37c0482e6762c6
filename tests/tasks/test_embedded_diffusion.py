"""The embedded masked-diffusion model: a few seconds' lesson, kept and found again, and what its names mean."""

from __future__ import annotations

import pytest
import torch

from quatrain.errors import QuatrainError
from quatrain.models.masked_diffusion import MaskedDiffusionLM
from quatrain.protocols import Sampling
from quatrain.tasks.embedded_diffusion import OWN, CanvasLesson, tiny_diffusion
from quatrain.tasks.letters import KINDS, Problems, letters
from quatrain.tasks.warm_start import corpus

SHORT = {"hidden": 32, "inner": 32, "layers": 1, "heads": 2, "groups": 1, "examples": 96, "shares": {"reverse": 1}}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))


def test_it_is_built_once_and_found_again(tmp_path):
    first = tiny_diffusion(show=False, **SHORT)
    (folder,) = (tmp_path / "cache").iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    second = tiny_diffusion("tiny-diffusion:base", show=False, **SHORT)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert isinstance(second, MaskedDiffusionLM) and second.unmasking.canvas == 12 and second.defaults["max_actions"] == 12
    for one, other in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(one, other)
    task = letters("letters:reverse")
    found = task.evaluate(second, 8, 2, Sampling(max_actions=12), 0)
    assert 0 <= found["accuracy"] <= 1 and found["length"] <= 12


def test_every_answer_of_its_lessons_fits_on_the_canvas():
    for lesson in OWN.values():
        kinds = tuple(lesson["shares"])
        assert max(len(item.solution) for item in Problems("train", kinds=kinds, size=2000)) < CanvasLesson().canvas
        texts = corpus(CanvasLesson(**{**lesson, "examples": 2000}))
        assert max(len(completion) for _, completion in texts) < CanvasLesson().canvas
    assert "scratch" in KINDS and "scratch" not in OWN["base"]["shares"]


def test_unknown_names_are_refused():
    with pytest.raises(QuatrainError, match="strong"):
        tiny_diffusion("tiny-diffusion:strng")
    with pytest.raises(QuatrainError, match="canvas"):
        tiny_diffusion(canvs=3)
