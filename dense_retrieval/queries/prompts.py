"""Instructions to a language model: one file a query type."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dense_retrieval.records import InputError

_FOLDER = Path(__file__).parent / "prompts"
_KEYS = ("prompt", "examples", "shots", "base")


@dataclass(frozen=True)
class Prompt:
    """What a language model is asked for one type of query.

    Attributes:
        paragraphs: of the message; one holds ``{passage}``, one may hold ``{examples}``.
        examples: pool that the few-shot examples are drawn from.
        shots: examples a prompt.
        base: the type by whose rules the answers are cleaned; of most types their own name.
    """

    querytype: str
    paragraphs: tuple[str, ...]
    examples: tuple[str, ...]
    shots: int
    base: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """What the messages are made of."""
        return {
            "querytype": self.querytype,
            "paragraphs": self.paragraphs,
            "examples": self.examples,
            "shots": self.shots,
        }

    @classmethod
    def load(cls, querytype: str) -> "Prompt":
        """The prompt of a type: a name that this package knows, or the path of a YAML file.

        The file's stem is the type's name; its keys are ``prompt``, for few-shot prompts ``examples``
        and ``shots`` (default 3), and for a type that is cleaned like another one ``base``.

        Raises:
            InputError: no such type or file, broken YAML, an unknown key, no ``{passage}``.
        """
        path = _file(querytype)
        if not path.is_file():
            raise InputError(
                f"there is no prompt for the query type {querytype!r}; there are: {', '.join(known())}; or give the "
                "path of a .yaml file of your own in querytype.types"
            )
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) or not isinstance(content.get("prompt"), str):
            raise InputError(f"{path}: the key 'prompt' is missing or no text")
        return cls._checked(path, content)

    @classmethod
    def _checked(cls, path: Path, content: dict) -> "Prompt":
        if unknown := set(content) - set(_KEYS):
            raise InputError(f"{path}: unknown key {min(unknown)!r}; known are {', '.join(_KEYS)}")
        examples, shots = content.get("examples", []), content.get("shots", 3)
        if not isinstance(examples, list) or not all(isinstance(e, str) for e in examples):
            raise InputError(f"{path}: 'examples' must be a list of texts")
        paragraphs = tuple(p.strip() for p in content["prompt"].strip().split("\n\n"))
        if sum(p.count("{passage}") for p in paragraphs) != 1:
            raise InputError(f"{path}: the prompt must hold {{passage}} once, where the passage goes")
        few_shot = any("{examples}" in p for p in paragraphs)
        if few_shot and not (isinstance(shots, int) and 1 <= shots <= len(examples)):
            raise InputError(f"{path}: {{examples}} needs at least shots={shots} 'examples', 1 or more")
        base = content.get("base", path.stem)
        if "base" in content and not (isinstance(base, str) and (_FOLDER / f"{base}.yaml").is_file()):
            raise InputError(f"{path}: base={base!r} is none of this package's types: {', '.join(known())}")
        return cls(path.stem, paragraphs, tuple(e.strip() for e in examples), shots if few_shot else 0, base)

    def render(self, passage: str, passage_first: bool, rng: np.random.Generator) -> tuple[str, int]:
        """The message, and how many characters at its start other messages begin with too.

        Args:
            passage_first: the paragraph of the passage comes before the others, so that all types
                of a passage share it; otherwise it comes last, and all passages of a type share
                what stands before the examples.
        """
        shown = "\n".join(f"- {self.examples[i]}" for i in self._drawn(rng))
        passage_paragraph = next(p for p in self.paragraphs if "{passage}" in p)
        others = [p for p in self.paragraphs if p is not passage_paragraph]
        fixed = next((i for i, p in enumerate(others) if "{examples}" in p), len(others))
        before, after = others[:fixed], [p.replace("{examples}", shown) for p in others[fixed:]]
        # replaced last: a passage may contain braces
        filled = passage_paragraph.replace("{examples}", shown).replace("{passage}", passage)
        if passage_first:
            head, tail = [filled], [*before, *after]
        else:
            head, tail = before, [*after, filled]
        return "\n\n".join([*head, *tail]), len("\n\n".join(head))

    def _drawn(self, rng: np.random.Generator) -> list[int]:
        return rng.choice(len(self.examples), self.shots, replace=False).tolist() if self.shots else []


def _file(querytype: str) -> Path:
    return Path(querytype) if querytype.endswith(".yaml") else _FOLDER / f"{querytype}.yaml"


def known() -> list[str]:
    """The types that this package has prompts for."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def bases(types: Sequence[str]) -> dict[str, str]:
    """Name -> the type by whose rules it is cleaned, of those types whose prompts name another one.

    A type without a prompt, whose queries come from a file, is cleaned by its own name.
    """
    prompts = [Prompt.load(of) for of in types if _file(of).is_file()]
    return {prompt.querytype: prompt.base for prompt in prompts if prompt.base != prompt.querytype}


def type_name(querytype: str) -> str:
    """The name of a query type: of a prompt file its stem."""
    return Path(querytype).stem if querytype.endswith(".yaml") else querytype


def prompts_of(types: Sequence[str]) -> list[Prompt]:
    """The prompts of some types; human queries need none.

    Raises:
        InputError: see :meth:`Prompt.load`; two types of one name.
    """
    prompts = [Prompt.load(t) for t in dict.fromkeys(types) if t != "human"]
    names = [prompt.querytype for prompt in prompts]
    if taken := [name for name in names if name == "human" or names.count(name) > 1]:
        raise InputError(
            f"querytype.types={list(types)}: two types are called {taken[0]!r}; rename the prompt's file"
        )
    return prompts
