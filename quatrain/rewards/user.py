"""A user's own function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from quatrain.errors import QuatrainError, nearest
from quatrain.user_code import load_module, split_source

if TYPE_CHECKING:
    from quatrain.protocols import Item

ARGUMENTS = ("completion", "prompt", "answer", "item", "solution")


@dataclass(frozen=True)
class User:
    """A function from ``package.module:function`` or ``file.py:function``, called by the names of its parameters.

    The parameters are some of ``completion, prompt, answer, item, solution`` (those with a default may have other names);
    ``item`` is the whole ``protocols.Item``. From a file without ``:function``, the one named ``reward`` is taken, else the
    only public function that the file itself defines. Nothing is imported before ``prepare`` or the first call, so that in a
    run the user's code is loaded in the workers only. Its file's folder can be imported from.

    source  where the function is.
    Raises QuatrainError (in ``prepare``): file or module not found or not importable, no such function, wrong parameters.
    """

    source: str
    trusted: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    _call: list[Callable[[str, Item], Any]] = field(default_factory=list, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.source

    def __post_init__(self) -> None:
        path, _ = split_source(self.source)
        if path.endswith(".py") and not Path(path).expanduser().is_file():
            folder = Path(path).expanduser().parent
            raise QuatrainError(
                f"the reward file {path} does not exist",
                given=f"reward={self.source}",
                fix=nearest(Path(path).name, [file.name for file in folder.glob("*.py")])
                if folder.is_dir()
                else f"there is no folder {folder}",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_call": []}  # a worker imports for itself

    def prepare(self) -> None:
        if not self._call:
            path, name = split_source(self.source)
            self._call.append(by_name(_function(load_module(path, "reward"), path, name), self.source))

    def __call__(self, completion: str, item: Item) -> Any:
        if not self._call:
            self.prepare()
        return self._call[0](completion, item)


def by_name(function: Callable[..., Any], source: str) -> Callable[[str, Item], Any]:
    """``function`` as (completion, item) → value, its parameters filled by name.

    Raises QuatrainError for a required parameter with another name.
    """
    if not callable(function) or inspect.isclass(function):
        raise QuatrainError(
            f"{source} is not a function", given=type(function).__name__, expected="def reward(completion, item): return a number"
        )
    parameters = inspect.signature(function).parameters.values()
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    named = [parameter for parameter in parameters if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)]
    strange = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and (parameter.kind is parameter.POSITIONAL_ONLY or (parameter in named and parameter.name not in ARGUMENTS))
    ]
    wanted = ARGUMENTS if every else tuple(parameter.name for parameter in named if parameter.name in ARGUMENTS)
    if strange or not wanted:
        raise QuatrainError(
            f"reward {source} has the wrong parameters",
            given=f"({', '.join(str(parameter) for parameter in parameters)})",
            expected=f"parameters named among {', '.join(ARGUMENTS)}: it is called once per completion",
            fix=nearest(strange[0], ARGUMENTS) if strange else "def reward(completion, item)",
        )

    def call(completion: str, item: Item) -> Any:
        return function(**{name: _VALUES[name](completion, item) for name in wanted})

    return call


_VALUES: dict[str, Callable[[str, Any], Any]] = {
    "completion": lambda completion, item: completion,
    "prompt": lambda completion, item: item.prompt,
    "answer": lambda completion, item: item.answer,
    "item": lambda completion, item: item,
    "solution": lambda completion, item: item.solution,
}


def _function(module: ModuleType, path: str, name: str | None) -> Any:
    public = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__ and key[0] != "_"
    ]
    if name is None:
        name = "reward" if "reward" in public or len(public) != 1 else public[0]
    if not hasattr(module, name):
        fix = f"reward={path}:{public[0]}" if len(public) == 1 else nearest(name, public)
        raise QuatrainError(
            f"{path} has no function {name}", given=f"functions {', '.join(public) or 'none'}", expected=f"{path}:FUNCTION", fix=fix
        )
    return getattr(module, name)
