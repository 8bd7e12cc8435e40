"""Stages: plain functions from folders to a folder, run once for what their signature declares.

::

    @stage(Tokens.load, speed=("workers",), version=2)
    def tokens(folder: Path, texts: Folder[Dataset], /, *, length: int, workers: int) -> Counts: ...

    step = tokens(corpus, length=96, workers=2)   # a Step: it has a key, and nothing has run
    store.build(step)                             # runs what is missing
    store.load(step)                              # what Tokens.load makes of its folder

The signature is the key: positional arguments are inputs, keyword arguments are settings, and those named in
``speed`` do not count. A function cannot read what it does not declare, so its key forgets nothing.

A command describes all of its stages, and mostly runs few. So modules of stages import no library that takes long
to load: torch, transformers, datasets and the like are imported by the functions that compute with them.
"""

import functools
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from dense_retrieval.files import fingerprint

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")
Counts = Mapping[str, Any]  # what a stage counted, for its record

SPEED: set[str] = set()  # what changes no result, of all stages


class Counted(dict[str, float]):
    """What an input counted, or will count; what is not known is NaN.

    Attributes:
        path: of a file or folder from outside.
    """

    path: Path | None = None

    def __missing__(self, name: str) -> float:
        return math.nan


class Folder(Generic[T_co]):
    """What a stage function gets as an input: an artifact, or a file or folder from outside."""

    key: str

    @property
    def path(self) -> Path:
        raise TypeError(f"{self.key} is not built: ask a store for it")

    def load(self) -> T_co:
        """What the folder holds, as the stage that made it says."""
        raise TypeError(f"{self.key} is not built: ask a store for it")


class Built(Folder[T_co]):
    """An artifact on disk, or a part of it."""

    def __init__(self, path: Path, key: str, load: Callable[[Path], T_co]) -> None:
        self._path = path
        self.key = key
        self._load = load

    @property
    def path(self) -> Path:
        return self._path

    def load(self) -> T_co:
        return self._load(self._path)


class Outside(Folder[Path]):
    """A file or folder that no stage made; its key is its content.

    Args:
        path: it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @functools.cached_property
    def key(self) -> str:  # type: ignore[override]
        return fingerprint(self._path)

    def load(self) -> Path:
        return self._path


class Settings(dict[str, Any]):
    """Settings of which only some change the result, or only where they differ from a default.

    Args:
        keyed: what enters the key.
    """

    def __init__(self, values: Mapping[str, Any], keyed: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.keyed = dict(keyed)


@dataclass(frozen=True)
class Later:
    """A ``speed`` setting that is found when the stage runs: to ask for a GPU, torch must be loaded."""

    find: Callable[[], Any]


def resolved(value: Any) -> Any:
    """A setting's value, found now if it was for later."""
    return value.find() if isinstance(value, Later) else value


class Step(Folder[T_co]):
    """A stage with its inputs and settings: a name for its artifact, whether that is built or not."""

    def __init__(
        self, stage: "Stage[Any, T_co]", inputs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.stage = stage
        self.arguments = inputs  # by name a folder, a mapping of several, or None
        self.settings = settings

    @functools.cached_property
    def made_from(self) -> dict[str, Any]:
        """What the key is the SHA-256 of: stage, version, settings, keys of inputs."""
        stage = self.stage
        kept = {name: value for name, value in self.arguments.items() if name not in stage.speed}
        settings = {
            name: _keyed(value, stage.speed)
            for name, value in self.settings.items()
            if name not in stage.speed and not (name in stage.defaults and stage.defaults[name] == value)
        }
        inputs = {name: folder.key for name, folder in _folders(kept)}
        return {"stage": stage.name, "version": stage.version, "settings": settings, "inputs": inputs}

    @functools.cached_property
    def key(self) -> str:  # type: ignore[override]
        """The name of its folder."""
        return key_of(self.made_from)

    @property
    def inputs(self) -> list["Step[Any]"]:
        """The steps that it reads, in the order of its arguments."""
        folders = [folder for _, folder in _folders(self.arguments)]
        return [f.step if isinstance(f, Member) else f for f in folders if isinstance(f, Step | Member)]

    def forecast(self, counted: Callable[[Folder[Any]], Counted]) -> Counted:
        """What the stage will count; ``counted`` says it of its inputs."""
        if self.stage.forecast is None:
            return Counted()
        inputs = {
            name: [counted(folder) for folder in value.values()]
            if isinstance(value, Mapping)
            else (counted(value) if value is not None else None)
            for name, value in self.arguments.items()
        }
        found = self.stage.forecast(**inputs, **self.settings)
        return Counted({name: float(n) for name, n in found.items()})

    def part(self, name: str) -> "Member":
        """A file or folder of its artifact."""
        return Member(self, name)

    def run(self, folder: Path, built: Callable[["Step[Any] | Member"], Folder[Any]]) -> Counts:
        """Fill a folder; ``built`` finds the inputs' artifacts."""

        def placed(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: placed(item) for name, item in value.items()}
            return built(value) if isinstance(value, Step | Member) else value

        settings = {name: resolved(value) for name, value in self.settings.items()}
        return self.stage.function(folder, *map(placed, self.arguments.values()), **settings)


def reachable(steps: Iterable[Step[Any]]) -> dict[str, Step[Any]]:
    """Some steps and all that they are made from, by key, inputs before what reads them."""
    found: dict[str, Step[Any]] = {}

    def add(step: Step[Any]) -> None:
        if step.key not in found:
            for below in step.inputs:
                add(below)
            found[step.key] = step

    for step in steps:
        add(step)
    return found


class Member(Folder[Path]):
    """A file or folder in a step's artifact."""

    def __init__(self, step: Step[Any], name: str) -> None:
        self.step = step
        self.name = name
        self.key = f"{step.key}/{name}"


def key_of(made_from: Mapping[str, Any]) -> str:
    """The folder's name of an artifact: its stage, and the SHA-256 of what it is made from."""
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return f"{made_from['stage']}-{digest[:16]}"


class Stage(Generic[P, T_co]):
    """A stage function; calling it gives a :class:`Step`."""

    def __init__(
        self,
        function: Callable[..., Counts],
        load: Callable[[Path], T_co],
        name: str,
        speed: Sequence[str],
        version: int,
        forecast: Callable[..., Mapping[str, float]] | None,
    ) -> None:
        self.function = function
        self.forecast = forecast
        self.load = load
        self.name = name
        self.speed = frozenset(speed)
        self.version = version
        self.signature = inspect.signature(function)
        parameters = list(self.signature.parameters.values())[1:]
        self.inputs = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        SPEED.update(speed)

    def __call__(self, *inputs: P.args, **settings: P.kwargs) -> Step[T_co]:
        bound = self.signature.bind(None, *inputs, **settings)
        bound.apply_defaults()
        found: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1 + len(self.inputs) :]:
            variadic = self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            found |= value if variadic else {name: value}
        return Step(self, {name: bound.arguments[name] for name in self.inputs}, found)


def stage(
    load: Callable[[Path], T],
    *,
    name: str | None = None,
    speed: Sequence[str] = (),
    version: int = 1,
    forecast: Callable[..., Mapping[str, float]] | None = None,
) -> Callable[[Callable[Concatenate[Path, P], Counts]], Stage[P, T]]:
    """Make a stage of a function that fills the folder it is given.

    After a kill the function gets the same folder again, with what it had written; what it returns is recorded.

    Args:
        load: what the finished folder holds.
        name: of the stage; else the function's.
        speed: what changes no result, such as the device: no part of the key, neither as an argument nor in one.
        version: to be raised when the function gives other results, or when a default changes. A setting that
            equals its default does not enter the key, so that a new one leaves old keys alone.
        forecast: what the function will count, from the counts of its inputs (see :class:`Counted`) and its
            settings, by their names; the first is the work that its time depends on, and "bytes" what it will write.
    """

    def decorate(function: Callable[Concatenate[Path, P], Counts]) -> Stage[P, T]:
        return Stage(function, load, name or function.__name__, speed, version, forecast)

    return decorate


def _keyed(value: Any, speed: frozenset[str]) -> Any:
    if isinstance(value, Settings):
        value = value.keyed
    if isinstance(value, Mapping):
        return {name: _keyed(item, speed) for name, item in value.items() if name not in speed}
    return [_keyed(item, speed) for item in value] if isinstance(value, list | tuple) else value


def _folders(arguments: Mapping[str, Any]) -> Iterator[tuple[str, Folder[Any]]]:
    """Names and values of inputs; one that is None is absent, a mapping of several stands for its items."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from ((f"{name} {item}".strip(), folder) for item, folder in value.items())
        elif value is not None:
            yield name, value
