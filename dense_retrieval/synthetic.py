"""Synthetic queries, from what a language model wrote to what training queries are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra import compose
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.candidates.difficulty import hard_queries
from dense_retrieval.checks import check
from dense_retrieval.config import Config, LanguageModel
from dense_retrieval.errors import in_one_line
from dense_retrieval.hardware import hardware
from dense_retrieval.nodes import settings
from dense_retrieval.queries.clean import clean_queries
from dense_retrieval.queries.distinct import distinct_queries
from dense_retrieval.queries.judge import MAX_TOKENS, judged_queries
from dense_retrieval.queries.prompts import bases, type_name
from dense_retrieval.records import Corpus, InputError
from dense_retrieval.stage import Outside, Settings, Step
from dense_retrieval.sweep import split_overrides
from dense_retrieval.views import measured

if TYPE_CHECKING:
    from datasets import Dataset

WHAT_IS_ASKED = ("passages", "passage_characters", "passage_first", "seed")
_BUDGET = ("budget", "parts", "choose")


def language_model(generator: Any) -> tuple[Settings, Outside | None]:
    """What answers: the backend's ``_target_`` and arguments, and its weights, where they are files."""
    backend = settings(generator, *WHAT_IS_ASKED, *_BUDGET, unkeyed=("path", "revision", "url"))
    model: Any = instantiate(backend)
    if dtype := getattr(model, "dtype", None):  # "auto" is another one on another machine
        backend["dtype"] = backend.keyed["dtype"] = str(dtype).removeprefix("torch.")
    files = getattr(model, "files", None)
    return backend, Outside(files) if files else None


def is_language_model(generator: Any) -> bool:
    return issubclass(OmegaConf.get_type(generator) or object, LanguageModel)


def cleaned(
    corpus: Step[Corpus], heldout: Step[np.ndarray], raw: Step[Dataset], types: list[str]
) -> Step[Dataset]:
    """What is fit to use of the queries of some types, names or files of prompts."""
    return clean_queries(corpus, heldout, raw, bases=bases(types) or None)


def filtered(
    c: Config, corpus: Step[Corpus], untrained: Mapping[str, Step[np.ndarray]], raw: Step[Dataset]
) -> list[Step[Dataset]]:
    """Of the training queries as they were written those that are fit to use, and what each further filter that is
    asked for leaves of them."""
    asked = c.querytype
    types = [type_name(of) for of in asked.types if of != "human"]
    found = [cleaned(corpus, untrained["heldout"], raw, list(asked.types))]
    if asked.near_duplicates is not None:
        found.append(distinct_queries(found[-1], untrained, types=types, similarity=asked.near_duplicates))
    if asked.judge is not None:
        found.append(_judged(c, corpus, untrained, found[-1], types))
    if asked.difficulty is not None:
        hardness = measured(c, corpus, found[-1], "queries")
        found.append(hard_queries(found[-1], hardness, untrained, types=types, share=asked.difficulty))
    return found


def _judged(
    c: Config,
    corpus: Step[Corpus],
    untrained: Mapping[str, Step[np.ndarray]],
    queries: Step[Dataset],
    types: list[str],
) -> Step[Dataset]:
    judge = _judge(c)
    backend, weights = language_model(judge)
    return judged_queries(
        corpus,
        queries,
        untrained,
        weights,
        types=types,
        passage_characters=judge.passage_characters,
        backend=backend,
        memos=Path(c.cache_dir),
        executor=hardware(c).executor,
    )


def _judge(c: Config) -> Any:
    """``querytype.judge`` as a generator that answers briefly and always the same.

    Raises:
        InputError: it does not compose, or is no language model.
    """
    words = str(c.querytype.judge)
    usual = {"temperature": 0.0, "max_tokens": MAX_TOKENS}
    if words == "generator":
        judge: Any = c.generator
        if is_language_model(judge):
            judge = OmegaConf.merge(judge, usual)
    else:
        # what is given takes the place of what is usual
        overrides = [*(f"generator.{name}={value}" for name, value in usual.items()), *split_overrides(words)]
        try:
            composed: Any = compose("config", overrides=overrides)
            check(composed)
        except (HydraException, InputError) as error:
            raise InputError(f"querytype.judge={words!r}: {in_one_line(error)}") from error
        judge = composed.generator
    if not is_language_model(judge):
        raise InputError(
            f"querytype.judge={words} is no language model; give its overrides, such as "
            "'generator=openai generator.url=http://localhost:8000/v1 generator.model=NAME', or with such a generator= "
            "querytype.judge=generator"
        )
    return judge
