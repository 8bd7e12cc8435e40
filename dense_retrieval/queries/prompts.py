"""Instructions to a language model: one file a query type."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from dense_retrieval.records import InputError

_FOLDER = Path(__file__).parent / "prompts"
_KEYS = {"prompt", "examples", "shots"}


@dataclass(frozen=True)
class Prompt:
    """What a language model is asked for one type of query.

    Attributes:
        paragraphs: of the message; one holds ``{passage}``, one may hold ``{examples}``.
        examples: pool that the few-shot examples are drawn from.
        shots: examples a prompt.
    """

    querytype: str
    paragraphs: tuple[str, ...]
    examples: tuple[str, ...]
    shots: int

    @classmethod
    def load(cls, querytype: str) -> "Prompt":
        """The prompt of a type: a name that this package knows, or the path of a YAML file.

        The file's stem is the type's name; its keys are ``prompt`` and, for few-shot prompts,
        ``examples`` and ``shots`` (default 3).

        Raises:
            InputError: no such type or file, broken YAML, an unknown key, no ``{passage}``.
        """
        path = Path(querytype) if querytype.endswith(".yaml") else _FOLDER / f"{querytype}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.yaml")))
            raise InputError(
                f"there is no prompt for the query type {querytype!r}; there are: {known}; or give the "
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
        if unknown := set(content) - _KEYS:
            raise InputError(f"{path}: unknown key {min(unknown)!r}; known are prompt, examples, shots")
        examples, shots = content.get("examples", []), content.get("shots", 3)
        if not isinstance(examples, list) or not all(isinstance(e, str) for e in examples):
            raise InputError(f"{path}: 'examples' must be a list of texts")
        paragraphs = tuple(p.strip() for p in content["prompt"].strip().split("\n\n"))
        if sum(p.count("{passage}") for p in paragraphs) != 1:
            raise InputError(f"{path}: the prompt must hold {{passage}} once, where the passage goes")
        few_shot = any("{examples}" in p for p in paragraphs)
        if few_shot and not (isinstance(shots, int) and 1 <= shots <= len(examples)):
            raise InputError(f"{path}: {{examples}} needs at least shots={shots} 'examples', 1 or more")
        return cls(path.stem, paragraphs, tuple(e.strip() for e in examples), shots if few_shot else 0)

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
