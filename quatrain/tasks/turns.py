"""Episodes of several turns: the policy speaks, a text environment answers, and what was said is a row of the batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quatrain.batch import Batch, Origin
from quatrain.environments.episodes import Episode, readable, to_batch, turn_columns
from quatrain.environments.text import PLANNER, Limits, Start, Step, TextEnvironment
from quatrain.errors import QuatrainError, nearest
from quatrain.protocols import Policy, Sampling
from quatrain.seeds import mix
from quatrain.tasks.text import ROWS_AT_ONCE, SOLVED, pass_at_k

SPLITS = ("train", "heldout")
Turn = tuple[list[int], str, Mapping[str, Tensor], bool]  # tokens, text, columns, whether it was brought to its end
Speak = Callable[[list[Episode]], list[Turn]]


class TurnTask:
    """A text environment as a ``protocols.Task``. A row is an episode; the environment's answers are present in it and are no actions.

    limits  None: the environment's own.

    The answer to a turn is encoded once and appended; the policy's own tokens are never encoded again, so that what is scored is what
    was sampled. An episode that an environment calls (a sub-agent) is a row of its own with a context of its own, right after the row
    that the user asked; its reward is that row's.

    columns [N, T]  turn, rewards, terminated, truncated, present, and those of sampling.
    rows [N]        reward, prompt, seed, role, episode, parent: see ``environments.episodes.to_batch``.
    """

    provides = frozenset(
        {"reward", "rewards", "prompt", "seed", "behaviour_logp", "origin", "turn", "present", "role", "episode", "parent"}
        | {"terminated", "truncated"}
    )

    def __init__(self, name: str, environment: TextEnvironment, seed: int = 0, limits: Limits | None = None):
        self.name, self.environment, self.seed = name, environment, seed
        self.limits = limits or getattr(environment, "limits", Limits())
        self.stop = tuple(getattr(environment, "stop", ()))
        self.defaults = {"max_actions": self.limits.turns * self.limits.turn_tokens}

    @property
    def has(self) -> frozenset[str]:
        return frozenset({"demonstrations"} if hasattr(self.environment, "expert") else ())

    def check(self, policy: Policy) -> None:
        """Refuse a policy that is no language model, and one that cannot read the first prompts."""
        if not hasattr(policy, "encode_reply"):
            raise QuatrainError(
                f"{self.name} is played in text", given=type(policy).__name__, expected="a language model", fix="model=tiny, or a directory"
            )
        for start in self.starts("train", 0, 4):
            self.opened(policy, start, 0)

    def size(self, split: str) -> int | None:
        """None: there is no end of starts."""
        return None

    def starts(self, split: str, cursor: int, count: int) -> list[Start]:
        if split not in SPLITS:
            raise QuatrainError(f"task {self.name!r} has no split {split!r}", fix=nearest(split, SPLITS))
        return [self._ask("start", split, index) for index in range(cursor, cursor + count)]

    # -- trajectories ----------------------------------------------------------------------------------------------
    def rollout(self, policy: Policy, starts: Sequence[Start], group: int, sampling: Sampling, seed: int) -> Batch:
        """``group`` episodes from each start, start by start; after each the rows of the episodes that it called.

        ``sampling.max_actions`` bounds the actions of a row, all turns together. A row's randomness depends on (seed, start, member)
        alone: not on the other rows, nor on how rollouts are split into calls.
        """
        seen: Counter[int] = Counter()
        roots = []
        for start in starts:
            roots += [self.opened(policy, start, mix(seed, start.id, seen[start.id] + member)) for member in range(group)]
            seen[start.id] += group
        device = None

        def speak(live: list[Episode]) -> list[Turn]:
            nonlocal device
            rooms = [self._room(episode, sampling) for episode in live]
            seeds = torch.tensor([mix(episode.seed, episode.turn) for episode in live], dtype=torch.int64)
            chosen = replace(sampling, max_actions=max(rooms), stop=self.stop)
            batch = policy.sample([episode.context for episode in live], 1, chosen, seeds)
            device = batch.device
            cut = (batch["truncated"] & batch.mask).any(1).tolist()
            rows = zip(batch.actions.cpu(), batch.lengths.tolist(), rooms, cut, strict=True)
            return [self._spoken(policy, batch, row, *values, sampling) for row, values in enumerate(rows)]

        episodes = self.played(policy, roots, speak, sampling)
        batch = to_batch(episodes, Origin.POLICY, policy.version, device)
        if sampling.temperature not in (0, 1) and sampling.heat is None:
            batch = batch.with_rows(temperature=torch.full((len(batch),), float(sampling.temperature), device=batch.device))
        return batch

    def demonstrations(self, policy: Policy, starts: Sequence[Start]) -> Batch:
        """What the environment's expert says and does from each start, origin DEMONSTRATION, without a reward.

        Episodes that the limits cut are left out. Raises QuatrainError if the environment has no expert.
        """
        if not self.has:
            raise QuatrainError(f"{self.name} has no demonstrations", fix="give the environment a method expert(state) -> str")
        episodes = self.shown(policy, starts, lambda episode: self._ask("expert", episode.state))
        batch = to_batch(episodes, Origin.DEMONSTRATION, policy.version, policy.device, rewarded=False)
        return batch.take(torch.tensor([episode.root.ended for episode in episodes]))

    def shown(self, policy: Policy, starts: Sequence[Start], says: Callable[[Episode], str]) -> list[Episode]:
        """One episode from each start in which somebody else speaks, and those that it called."""

        def speak(live: list[Episode]) -> list[Turn]:
            return [(*self._given(policy, says(episode)), {}, True) for episode in live]

        roots = [self.opened(policy, start, mix(self.seed, start.id)) for start in starts]
        return self.played(policy, roots, speak, Sampling(max_actions=self.limits.context))

    # -- measuring -------------------------------------------------------------------------------------------------
    def evaluate(self, policy: Policy, count: int, samples: int, sampling: Sampling, seed: int) -> dict[str, float]:
        """Performance from the first ``count`` held-out starts.

        success          share of greedy episodes with a reward of at least 1; ``success/KIND`` and ``success/levelN`` where starts say so
        pass@k           chance that one of k sampled episodes succeeds, for k = 1, 2, 4 … samples (with samples = 0, none)
        reward, length   means over the greedy episodes: reward, actions
        turns, context   means over their rows, those of sub-agents included: turns, tokens in the context at the end
        calls            rows of sub-agents per episode
        """
        starts = self.starts("heldout", 0, count)
        greedy = self._measured(policy, starts, 1, replace(sampling, temperature=0.0), seed)
        roots = greedy.take(greedy["role"] == PLANNER)
        solved = (roots["reward"] >= SOLVED).double().cpu()
        context = (greedy.present.sum(1) + greedy.contexts["policy"]["mask"].sum(1)).double()
        result = {"success": solved.mean(), "reward": roots["reward"].mean(), "length": roots.lengths.double().mean()}
        turns = torch.where(greedy.mask, greedy["turn"] + 1, 0).amax(1).double()
        result |= {"turns": turns.mean(), "context": context.mean(), "calls": torch.tensor(len(greedy) / len(roots) - 1)}
        if samples:
            batch = self._measured(policy, starts, samples, sampling, seed)
            reward = batch.take(batch["role"] == PLANNER)["reward"].view(len(starts), samples)
            correct = (reward >= SOLVED).sum(1)
            powers = [2**power for power in range(samples.bit_length()) if 2**power < samples]
            result |= {f"pass@{k}": pass_at_k(correct, samples, k).mean() for k in [*powers, samples]}
        for label in sorted({label for start in starts for label in _labels(start)}):
            chosen = torch.tensor([label in _labels(start) for start in starts])
            result[f"success/{label}"] = solved[chosen].mean()
        return {name: float(value) for name, value in result.items()}

    def _measured(self, policy: Policy, starts: Sequence[Start], samples: int, sampling: Sampling, seed: int) -> Batch:
        step = max(1, ROWS_AT_ONCE // samples)
        parts = [self.rollout(policy, starts[first : first + step], samples, sampling, seed) for first in range(0, len(starts), step)]
        return Batch.cat(parts)

    def played(self, policy: Policy, roots: list[Episode], speak: Speak, sampling: Sampling) -> list[Episode]:
        """All episodes to their ends, turn by turn, all that are open at the same time; then each root followed by those it called."""
        everyone = list(roots)
        while live := [episode for episode in everyone if episode.open and not episode.waits]:
            for episode, (tokens, text, columns, whole) in zip(live, speak(live), strict=True):
                episode.act(tokens, text, columns)
                if whole:
                    self._answer(policy, episode, self._ask("step", episode.state, text), sampling, everyone)
                else:
                    self._end(policy, episode, "", sampling, everyone, cut=True)
        place = {id(root): number for number, root in enumerate(roots)}
        for episode in everyone:
            if episode.caller is not None:
                episode.rewards = {max(index for index, acts in enumerate(episode.acts) if acts): sum(episode.root.rewards.values())}
        return sorted(everyone, key=lambda episode: place[id(episode.root)])

    # -- inside ----------------------------------------------------------------------------------------------------
    def _answer(self, policy: Policy, episode: Episode, step: Step, sampling: Sampling, everyone: list[Episode]) -> None:
        """What the environment's answer does to the episode, to the one that called it, and to one that it calls."""
        if not isinstance(step, Step) or not math.isfinite(step.reward):
            raise QuatrainError(
                f"{self.name}: an environment answers a turn with a Step whose reward is finite",
                given=repr(step)[:200],
                expected="quatrain.environments.text.Step(state, observation, reward, ended)",
            )
        episode.state, episode.waits = step.state, False
        if step.reward:
            episode.reward(step.reward)
        if step.ended:
            self._end(policy, episode, step.observation, sampling, everyone)
        elif step.call is not None:
            child = self.opened(policy, step.call, mix(episode.seed, episode.calls, 1), episode)
            episode.calls += 1
            if self._room(child, sampling) > 0:
                episode.waits = True
                everyone.append(child)
            else:
                self._answer(policy, episode, self._ask("resume", episode.state, ""), sampling, everyone)
        else:
            tokens = policy.encode_reply(step.observation, _is_chat(policy, episode.start))
            if episode.turn + 1 >= self.limits.turns or len(episode.context) + len(tokens) >= self.limits.context:
                self._end(policy, episode, "", sampling, everyone, cut=True)
                return
            episode.observe(tokens, step.observation)
            if self._room(episode, sampling) <= 0:
                self._end(policy, episode, "", sampling, everyone, cut=True)

    def _end(self, policy: Policy, episode: Episode, told: str, sampling: Sampling, everyone: list[Episode], cut: bool = False) -> None:
        """The episode is over; the one that called it goes on."""
        episode.ended, episode.cut = not cut, cut
        if episode.caller is not None:
            self._answer(policy, episode.caller, self._ask("resume", episode.caller.state, told), sampling, everyone)

    def opened(self, policy: Policy, start: Start, seed: int, caller: Episode | None = None) -> Episode:
        prompt = list(start.prompt) if _is_tokens(start) else policy.encode(start.prompt)
        if caller is None and len(prompt) >= self.limits.context:
            raise QuatrainError(
                f"{self.name}: a prompt leaves no room for a turn",
                given=f"{len(prompt)} tokens: {readable(start.prompt)[:60]!r}",
                expected=f"less than the context of {self.limits.context} tokens",
                fix="raise the environment's limits.context",
            )
        return Episode(start, seed, prompt, caller)

    def _room(self, episode: Episode, sampling: Sampling) -> int:
        """How many tokens its next turn may have."""
        limits = self.limits
        return min(limits.turn_tokens, limits.context - len(episode.context), sampling.max_actions - episode.actions)

    def _spoken(
        self, policy: Policy, batch: Batch, row: int, actions: Tensor, length: int, room: int, cut: bool, sampling: Sampling
    ) -> Turn:
        """A row of a sampled batch as a turn, within its own room: rows in one call may have room for different numbers of tokens."""
        kept = min(length, room)
        whole = (kept == length and not cut) or kept == self.limits.turn_tokens
        tokens = actions[:kept].tolist()
        return tokens, policy.decode(tokens), turn_columns(batch, row, kept), whole

    def _given(self, policy: Policy, text: str) -> tuple[list[int], str]:
        """A turn that was written ends as the policy's does: in a stop text or with the end-of-sequence token, unless it fills the turn."""
        tokens = policy.encode_completion(text)
        ends = any(stop in text for stop in self.stop) or len(tokens) > self.limits.turn_tokens
        return tokens[:-1] if ends else tokens, text

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call the environment; what goes wrong in it is told with its name."""
        try:
            return getattr(self.environment, method)(*arguments)
        except QuatrainError:
            raise
        except Exception as error:  # the boundary to a user's code
            kind = type(self.environment).__name__
            raise QuatrainError(
                f"the environment of {self.name} failed in {kind}.{method}: {type(error).__name__}: {error}",
                given=", ".join(repr(argument)[:120] for argument in arguments),
            ) from error


def _is_tokens(start: Start) -> bool:
    return not isinstance(start.prompt, str) and all(isinstance(part, int) for part in start.prompt)


def _is_chat(policy: Policy, start: Start) -> bool:
    """Whether turns are messages: where the prompt is, or is made one."""
    return not _is_tokens(start) and (not isinstance(start.prompt, str) or bool(getattr(policy, "chat_template", None)))


def _labels(start: Start) -> list[str]:
    labels = [str(start.data["kind"])] if "kind" in start.data else []
    return labels + ([f"level{start.data['level']}"] if "level" in start.data else [])
