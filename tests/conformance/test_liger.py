"""The same scores and gradients with Liger's own kernels, on a machine without a GPU: under Triton's interpreter.

Skipped where liger-kernel and Triton are not installed: ``make conformance`` makes an environment that has them. The
kernels run in a process of their own, since Triton decides when it is imported whether to interpret.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch


@pytest.mark.skipif(not (find_spec("liger_kernel") and find_spec("triton")), reason="liger-kernel or Triton is not installed")
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_scores_and_gradients_are_the_models_own(architecture: str) -> None:
    done = subprocess.run(
        [sys.executable, __file__, architecture],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    score, slope, bound = map(float, done.stdout.split()[-3:])
    assert score < 1e-5 and slope < 1e-5
    assert bound > 4  # norms and gated MLPs really run something else


def complete_the_interpreter() -> None:
    """Triton 3.9 leaves numbers with a point as they are and has no functions of CUDA's library; its compiler has both."""
    import liger_kernel.ops.rms_norm
    import numpy
    import triton.language
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(value: object) -> object:
        if type(value) is not float:
            return convert(value)
        handle = interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), triton.language.float32)
        return triton.language.core.tensor(handle, triton.language.float32)

    interpreter._implicit_cvt = converted
    liger_kernel.ops.rms_norm.rsqrt = lambda value: triton.language.math.rsqrt(value)


def main(architecture: str) -> None:
    from quatrain.models.causal_lm import CausalLM
    from quatrain.models.liger import use_liger
    from quatrain.parts.likelihoods import Entropy, LogProb
    from tests.tiny_models import tiny_model, tiny_tokenizer

    complete_the_interpreter()
    found = []
    for liger in (False, True):
        model = tiny_model(architecture)
        if liger:
            use_liger(model)
        policy = CausalLM(model, tiny_tokenizer())
        batch = policy.demonstrate([policy.encode("1+1=")] * 2 + [policy.encode("30*3=")], ["2", "34", "90"])
        scores = policy.score(batch, [LogProb(), Entropy()])
        coefficient = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
        sum((coefficient * score).sum() for score in scores.values()).backward()
        found.append((torch.stack(list(scores.values())).detach(), [weight.grad for weight in model.parameters()]))
    (score, slopes), (expected, own) = found[1], found[0]
    largest = max(slope.abs().max() for slope in own)
    gap = max((a - b).abs().max() / largest for a, b in zip(slopes, own, strict=True))
    print((score - expected).abs().max().item(), gap.item(), sum("forward" in vars(part) for part in model.modules()))


if __name__ == "__main__":
    main(sys.argv[1])
