"""The same gradient as TRL 1.16 on the same model and batch, loss by loss; or the reason why not.

Skipped where TRL is not installed: ``make conformance`` makes an environment that has it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quatrain import make
from quatrain.batch import Batch
from quatrain.knobs import resolve
from quatrain.models.causal_lm import CausalLM
from quatrain.parts.aggregations import sequence_sum, token_mean
from quatrain.parts.bounds import Clip, unbounded
from quatrain.parts.denominators import Ratio
from quatrain.parts.likelihoods import LogProb
from quatrain.parts.tapers import TaperBySign
from quatrain.protocols import Sampling
from quatrain.recipes.basics.grpo import with_kl
from quatrain.training.recipe import Recipe
from tests.tiny_models import tiny_directory, tiny_model, tiny_tokenizer

trl = pytest.importorskip("trl")

GROUP, LONGEST = 4, 12
PROMPTS = ["12+34=", "7*8=", "sort: hello", "0"]


def moved(model: Any, by: float, seed: int) -> Any:
    """The model with noise of that relative size on every weight: a later or an earlier policy."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(by * weight.std() * torch.randn(weight.shape, generator=generator))
    return model


@dataclass
class Scene:
    """One sampled batch with rewards, the policy that is trained on it, and where the policy started."""

    folder: Path
    policy: CausalLM
    reference: CausalLM
    batch: Batch

    @property
    def mask(self) -> Tensor:
        return self.batch.mask.long()

    def inputs(self, advantage: Tensor) -> dict[str, Tensor]:
        """The batch in TRL's layout: prompts padded on the left, completions on the right."""
        tokens = [self.policy.encode(text) for text in PROMPTS for _ in range(GROUP)]
        width = max(map(len, tokens))
        prompt = torch.tensor([[0] * (width - len(row)) + list(row) for row in tokens])
        filled = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
        return {
            "prompt_ids": prompt,
            "prompt_mask": filled,
            "completion_ids": torch.where(self.batch.mask, self.batch.actions, 0),
            "completion_mask": self.mask,
            "advantages": advantage.float(),
            "old_per_token_logps": self.batch["old_logp"],
            "ref_per_token_logps": self.batch["reference_logp"],
            "num_items_in_batch": self.mask.sum(),
            "old_logps": (self.batch["old_logp"] * self.mask).sum(1),
        }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tiny_directory(tmp_path_factory.mktemp("model"), scale=3.0)
    start = CausalLM(tiny_model(scale=3.0), tiny_tokenizer())
    old = CausalLM(moved(tiny_model(scale=3.0), 0.02, 1), tiny_tokenizer())
    rows = len(PROMPTS) * GROUP
    batch = old.sample([old.encode(text) for text in PROMPTS], GROUP, Sampling(max_actions=LONGEST), torch.arange(rows))
    cut = torch.randint(3, LONGEST + 1, (rows,), generator=torch.Generator().manual_seed(2))  # lengths that differ
    batch = replace(batch, mask=batch.mask & (torch.arange(batch.mask.shape[1]) < cut[:, None]), actions=batch.actions.clamp(min=2))
    logp = LogProb()  # no padding as an action: an embedding with a padding_idx would not learn it
    with torch.no_grad():
        before, reference = (model.score(batch, [logp])[logp] for model in (old, start))
    batch = batch.with_columns(behaviour_logp=before, old_logp=before, reference_logp=reference).with_rows(
        reward=torch.rand(rows, generator=torch.Generator().manual_seed(3)),
        prompt=torch.arange(len(PROMPTS)).repeat_interleave(GROUP),
    )
    policy = CausalLM(moved(tiny_model(scale=3.0), 0.3, 4), tiny_tokenizer())
    return Scene(folder, policy, start, batch)


def gradient(model: Any) -> Tensor:
    found = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None]).double()
    model.zero_grad(set_to_none=True)
    return found


def ours(scene: Scene, recipe: Recipe, batch: Batch | None = None) -> Tensor:
    """The gradient of the recipe's one Fit on the batch as a single update."""
    ((_, fit),) = recipe.fits()
    fit = resolve(fit, {**recipe.knobs(), "max_actions": LONGEST})
    prepared = fit.loss.prepare(scene.batch if batch is None else batch)
    scene.policy.module.zero_grad(set_to_none=True)
    list(fit.gradient_parts(scene.policy, {"reference": scene.reference}, prepared))
    return gradient(scene.policy.module)


def theirs(scene: Scene, tmp_path: Path, advantage: Tensor, trainer: str = "GRPO", **settings: Any) -> Tensor:
    """The gradient of ``GRPOTrainer``'s (or ``RLOOTrainer``'s) loss with these settings on the same weights, batch and advantages."""
    from datasets import Dataset

    given = {"beta": 0.0, "epsilon": 0.2, "num_generations": GROUP, "max_completion_length": LONGEST, "temperature": 1.0, **settings}
    config = getattr(trl, f"{trainer}Config")(
        output_dir=str(tmp_path), per_device_train_batch_size=len(scene.batch), report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, disable_dropout=True, gradient_accumulation_steps=1, num_iterations=2, **given,
    )  # fmt: skip
    made = getattr(trl, f"{trainer}Trainer")(
        str(scene.folder), reward_funcs=lambda completions, **_: [0.0] * len(completions), args=config,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}), processing_class=tiny_tokenizer(),
    )  # fmt: skip
    made.model.load_state_dict(scene.policy.module.state_dict())
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    made._compute_loss(made.model, scene.inputs(advantage)).backward()
    return gradient(made.model)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def z_score(scene: Scene) -> Tensor:
    """TRL's: the sample standard deviation, and 1e-4 on it."""
    reward = scene.batch["reward"].view(-1, GROUP)
    return ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).flatten()


def centred(scene: Scene) -> Tensor:
    reward = scene.batch["reward"].view(-1, GROUP)
    return (reward - reward.mean(1, keepdim=True)).flatten()


def left_out(scene: Scene) -> Tensor:
    reward = scene.batch["reward"].view(-1, GROUP)
    return (reward - (reward.sum(1, keepdim=True) - reward) / (GROUP - 1)).flatten()


class SAPO:
    """r·f′(r) of f(r) = 4/τ·σ(τ(r − 1)): Gao et al. 2025. A part that nobody has built yet, written here in three lines."""

    needs = ()

    def __call__(self, log_ratio: Tensor, advantage: Tensor, batch: Batch) -> Tensor:
        tau = torch.where(advantage > 0, 1.0, 1.05)
        gate = torch.sigmoid(tau * (log_ratio.exp() - 1))
        return 4 * gate * (1 - gate) * log_ratio.exp()


plain = make("grpo", kl=0.0)
CASES: Mapping[str, tuple[Recipe, Any, dict[str, Any]]] = {
    "grpo": (plain, z_score, {"loss_type": "grpo"}),
    "grpo with k3": (make("grpo", kl=0.3), z_score, {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "grpo with ρ·k3": (with_kl(plain, 0.3, "k2").but("kl", denominator=Ratio("current", "old")), z_score,
                       {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True}),
    "grpo with two-sided clipping": (plain.but(bound=Clip(0.2, 0.2, dual=1.5)), z_score, {"loss_type": "grpo", "delta": 1.5}),
    "bnpo": (plain.but(aggregation=token_mean), z_score, {"loss_type": "bnpo"}),
    "dr-grpo": (make("dr-grpo"), centred, {"loss_type": "dr_grpo"}),
    "dapo, batch": (make("dapo", mean="batch"), z_score, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (make("gspo", clip_low=0.02, clip_high=0.03), z_score,
             {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03}),
    "luspo": (plain.but(denominator=Ratio("current", "old", level="sequence", reduce="mean"), aggregation=sequence_sum), z_score,
              {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
    "cispo": (plain.but(bound=TaperBySign((0.0, 1.1), (0.0, 1.1)), aggregation=token_mean), z_score,
              {"loss_type": "cispo", "epsilon_high": 1.1}),
    "sapo": (plain.but(bound=SAPO()), z_score, {"loss_type": "sapo"}),
    "rloo": (make("rloo").but(denominator=Ratio("current", "old", level="sequence", reduce="sum"), bound=Clip(0.2, 0.2)), left_out,
             {"trainer": "RLOO"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_trls(name: str, scene: Scene, tmp_path: Path):
    recipe, advantage, settings = CASES[name]
    a, b = ours(scene, recipe), theirs(scene, tmp_path, advantage(scene), **settings)
    print(f"{name}: cosine {cosine(a, b):.8f}, norms {float(a.norm() / b.norm()):.5f}")
    assert cosine(a, b) > 0.9999


def test_the_batch_tells_bounds_apart(scene: Scene):
    """The policy is stale enough that a clip matters: without it the gradients would be others."""
    clipped = ours(scene, plain)
    for bound in (unbounded, Clip(0.2, 0.28), TaperBySign()):
        assert cosine(clipped, ours(scene, plain.but(bound=bound))) < 0.999
    assert cosine(clipped, ours(scene, plain.but(aggregation=token_mean))) < 0.999
    assert cosine(clipped, ours(scene, CASES["gspo"][0])) < 0.999


def test_dpo_is_trls(scene: Scene, tmp_path: Path):
    """Two answers to each prompt as a pair."""
    from datasets import Dataset

    first = torch.arange(0, len(scene.batch), GROUP)
    rows = torch.stack([first, first + 1], 1).flatten()
    pairs = scene.batch.take(rows).with_rows(
        pair=torch.arange(len(PROMPTS)).repeat_interleave(2), preference=torch.tensor([1.0, -1.0]).repeat(len(PROMPTS))
    )
    a = ours(scene, make("dpo", beta=0.3), pairs)
    config = trl.DPOConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.3, disable_dropout=True
    )
    data = Dataset.from_dict({"prompt": PROMPTS, "chosen": ["1"] * len(PROMPTS), "rejected": ["2"] * len(PROMPTS)})
    trainer = trl.DPOTrainer(
        str(scene.folder),
        ref_model=copy.deepcopy(scene.reference.module),
        args=config,
        train_dataset=data,
        processing_class=tiny_tokenizer(),
    )
    trainer.model.load_state_dict(scene.policy.module.state_dict())
    trainer.model.train()
    told = scene.inputs(torch.zeros(len(scene.batch)))
    told = {name: value[torch.cat([first, first + 1])] for name, value in told.items() if value.ndim == 2}
    filled = torch.cat([told["prompt_mask"], told["completion_mask"]], 1)
    inputs = {
        "input_ids": torch.cat([told["prompt_ids"], told["completion_ids"]], 1),
        "attention_mask": filled,
        "completion_mask": torch.cat([torch.zeros_like(told["prompt_mask"]), told["completion_mask"]], 1),
    }
    trainer._compute_loss(trainer.model, inputs, False).backward()
    b = gradient(trainer.model)
    print(f"dpo: cosine {cosine(a, b):.8f}, norms {float(a.norm() / b.norm()):.5f}")
    assert cosine(a, b) > 0.9999
