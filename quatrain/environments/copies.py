"""Many copies of one Gymnasium environment, stepped together, each episode begun from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from quatrain.errors import QuatrainError, nearest
from quatrain.models.networks import Box, Discrete

SPLITS = ("train", "heldout", "test", "living")


def start_seed(seed: int, split: str, position: Any) -> Any:
    """The reset seed at a position (an integer below 2³², or an array of them) of a split; unique over task seeds, splits and positions.

    >>> start_seed(0, "train", 5), start_seed(0, "heldout", 5)
    (20, 21)
    """
    return ((seed << 32) + position) * len(SPLITS) + SPLITS.index(split)


class Copies:
    """E environments that are in step, by Gymnasium's ``NEXT_STEP`` rule.

    After the action that ends an episode, ``observation`` is the true final one; the next ``step`` ignores that copy's action, and the
    episode that it begins is then placed by ``begin``, so that it depends on its seed only and can be regenerated from it.

    An environment with a vectorised version of its own (CartPole: millions of steps per second) is stepped by it when its whole state can
    be placed copy by copy, which is tried out on construction; any other one by a loop over single environments.

    observation       [E, D] float32, what each copy shows now.
    observation_size  D; a discrete observation is one-hot.
    action_space      ``Discrete`` or ``Box``.
    max_steps         the environment's own limit of steps per episode, or None.

    Raises QuatrainError for an unknown id, a missing dependency, and spaces that a small network has no use for (images, dictionaries).
    """

    def __init__(self, env_id: str, count: int, options: Mapping[str, Any] | None = None):
        self.count = count
        self._stepper = _native(env_id, count, options or {}) or _Loop(env_id, count, options or {})
        envs = self._stepper.envs
        self.observation_size, self._encode = _observations(env_id, envs.single_observation_space)
        self.action_space, self._execute = _actions(env_id, envs.single_action_space)
        self.max_steps: int | None = envs.spec.max_episode_steps if envs.spec else None
        self.observation = np.zeros((count, self.observation_size), np.float32)

    def begin(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Reset the copies where rows [E] is True, each from its seed (one per True, in order)."""
        self.observation = self.observation.copy()
        self.observation[rows] = self._encode(self._stepper.begin(rows, seeds))

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(reward [E] float32, terminated [E], truncated [E]) of actions [E] or [E, D]; box actions are executed clipped to the box."""
        observation, reward, terminated, truncated, _ = self._stepper.envs.step(self._execute(actions))
        self.observation = self._encode(observation)
        return reward.astype(np.float32), terminated, truncated

    def close(self) -> None:
        self._stepper.envs.close()


class _Loop:
    """Single environments, stepped one after the other."""

    def __init__(self, env_id: str, count: int, options: Mapping[str, Any]):
        from gymnasium.vector import AutoresetMode

        self.envs = make(env_id, count, "sync", {**options, "vector_kwargs": {"autoreset_mode": AutoresetMode.NEXT_STEP}})

    def begin(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        chosen: list[int | None] = [None] * len(rows)
        for row, seed in zip(rows.nonzero()[0], seeds, strict=True):
            chosen[row] = int(seed)
        return self.envs.reset(seed=chosen, options={"reset_mask": rows})[0][rows]


class _Arrays:
    """A vectorised environment whose state is numpy arrays with an axis of copies: a twin of one copy is reset, its state moved."""

    def __init__(self, envs: Any, twin: Any, axes: Mapping[str, int]):
        self.envs, self.twin, self.axes = envs, twin, axes
        envs.reset(seed=0)

    def begin(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        known, core = {}, self.twin.unwrapped
        for seed in dict.fromkeys(seeds):
            observation = self.twin.reset(seed=int(seed))[0][0]
            known[seed] = observation, [getattr(core, name).take(0, axis) for name, axis in self.axes.items()]
        for i, (name, axis) in enumerate(self.axes.items()):
            target = np.moveaxis(getattr(self.envs.unwrapped, name), axis, 0)  # a view: what is written goes to the environment
            target[rows] = [known[seed][1][i] for seed in seeds]
        return np.stack([known[seed][0] for seed in seeds])


def _native(env_id: str, count: int, options: Mapping[str, Any]) -> _Arrays | None:
    """The environment's own vectorised version, or None where it has none, or none whose state can be moved."""
    import gymnasium

    spec = gymnasium.registry.get(env_id)
    if spec is None or spec.vector_entry_point is None:
        return None
    envs, pair, twin = (make(env_id, n, "vector_entry_point", options) for n in (count, 2, 1))
    next_step = envs.metadata.get("autoreset_mode") == gymnasium.vector.AutoresetMode.NEXT_STEP
    axes = _axes(pair, twin) if next_step else {}
    return _Arrays(envs, twin, axes) if axes and _can_be_moved(pair, twin, axes) else None


def _axes(pair: Any, twin: Any) -> dict[str, int]:
    """Name → axis of copies, of the arrays that differ in shape between two copies and one."""
    pair.reset(seed=0), twin.reset(seed=0)
    axes = {}
    for name, two in vars(pair.unwrapped).items():
        one = vars(twin.unwrapped).get(name)
        if isinstance(two, np.ndarray) and isinstance(one, np.ndarray) and two.ndim == one.ndim:
            differing = [axis for axis in range(two.ndim) if two.shape[axis] != one.shape[axis]]
            if len(differing) == 1:
                axes[name] = differing[0]
    return axes


def _can_be_moved(pair: Any, twin: Any, axes: Mapping[str, int], steps: int = 5) -> bool:
    """Whether a copy placed by its arrays behaves as its origin does, and no step draws from the generator that copies share."""
    twin.single_action_space.seed(0)
    action = twin.single_action_space.sample()
    trial = _Arrays(pair, twin, axes)
    pair.step(np.stack([action, action]))
    shown = trial.begin(np.array([False, True]), [7])
    generator = pair.unwrapped.np_random.bit_generator
    before, same = generator.state, np.array_equal(shown[0], twin.reset(seed=7)[0][0])
    for _ in range(steps):
        moved, origin = pair.step(np.stack([action, action])), twin.step(action[None])
        same = same and all(np.array_equal(m[1], o[0]) for m, o in zip(moved[:4], origin[:4], strict=True))
    return same and generator.state == before


def make(env_id: str, count: int, mode: str, options: Mapping[str, Any]) -> Any:
    """``gymnasium.make_vec`` with errors for people."""
    try:
        import gymnasium
    except ImportError as error:
        raise QuatrainError("environments come with the rl extra", given=str(error), fix="pip install 'quatrain[rl]'") from error
    try:
        return gymnasium.make_vec(env_id, num_envs=count, vectorization_mode=mode, **options)
    except gymnasium.error.UnregisteredEnv as error:
        raise QuatrainError(f"unknown environment {env_id!r}", given=str(error), fix=nearest(env_id, gymnasium.registry)) from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise QuatrainError(
            f"environment {env_id!r} cannot be made", given=str(error), expected="its dependencies, and options it knows"
        ) from error


def _observations(env_id: str, space: Any) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """(D, how raw observations [M, …] become [M, D] float32)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0], lambda raw: raw.astype(np.float32)
    if isinstance(space, spaces.Discrete):
        one_hot = np.eye(int(space.n), dtype=np.float32)
        return int(space.n), lambda raw: one_hot[raw - space.start]
    raise QuatrainError(
        f"the observations of {env_id!r} do not fit a small network",
        given=space,
        expected="a Box with one axis, or Discrete",
        fix="flatten them: register the environment with gymnasium.wrappers.FlattenObservation",
    )


def _actions(env_id: str, space: Any) -> tuple[Discrete | Box, Callable[[np.ndarray], np.ndarray]]:
    """(the policy's action space, how its actions [M, …] are executed)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n)), lambda actions: actions + space.start
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        box = Box(tuple(space.low.tolist()), tuple(space.high.tolist()))
        return box, lambda actions: np.clip(actions, space.low, space.high).astype(space.dtype)
    raise QuatrainError(f"the actions of {env_id!r} are not supported", given=space, expected="Discrete, or a Box with one axis")
