"""How a policy uses the two modes of ``letters:modes``: which it chooses for which problems, and whether that is the one that pays."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from quatrain.models.opened import Opened, only_token
from quatrain.parts.modes import thinking_pays
from quatrain.protocols import Item, Policy, Sampling
from quatrain.tasks.letters.modes import DIRECT, EASY, WORKED
from quatrain.tasks.text import TextTask


class ModesTask(TextTask):
    """A ``TextTask`` of ``modes`` problems, whose samples are also judged by how they are opened.

    worked           share that opens with ``#``; ``worked/easy``, ``worked/hard``: to problems of one operation, of several.
    worked/gap       hard less easy: 0 where the choice does not look at the problem, 1 where it is perfect.
    characters/easy, characters/hard   mean length, without the end.
    hybrid accuracy  how often a sample has the mode that pays for its problem (Jiang et al. 2025): the direct one, unless the mean
                     reward of as many samples that are made to open with ``#`` is more than ``margin`` above that of samples
                     made to open with ``>``.

    A share of what is not there is not reported.
    """

    margin = 0.2

    def measures_of_samples(
        self, policy: Policy, items: Sequence[Item], completions: Sequence[str], sampling: Sampling, seed: int
    ) -> dict[str, float]:
        samples = len(completions) // len(items)
        easy = [item.data["level"] <= EASY for item in items for _ in range(samples)]
        found = {"worked": fmean(text.startswith(WORKED) for text in completions)}
        for side, wanted in (("easy", True), ("hard", False)):
            if wanted in easy:
                texts = [text for text, here in zip(completions, easy, strict=True) if here == wanted]
                found[f"worked/{side}"] = fmean(text.startswith(WORKED) for text in texts)
                found[f"characters/{side}"] = fmean(len(text) for text in texts)
        if len(set(easy)) == 2:
            found["worked/gap"] = found["worked/hard"] - found["worked/easy"]
        paying = [mode for mode in self.paying(policy, items, samples, sampling, seed) for _ in range(samples)]
        found["hybrid accuracy"] = fmean(text.startswith(mode) for text, mode in zip(completions, paying, strict=True))
        return found

    def paying(self, policy: Policy, items: Sequence[Item], samples: int, sampling: Sampling, seed: int) -> list[str]:
        """The opening that pays for each item, by ``samples`` that are made to begin with either."""
        worked, direct = (
            self.outcomes(Opened(policy, [only_token(policy, opening)]), items, samples, sampling, seed).double().mean(1)
            for opening in (WORKED, DIRECT)
        )
        return [WORKED if pays else DIRECT for pays in thinking_pays(worked, direct, self.margin).tolist()]
