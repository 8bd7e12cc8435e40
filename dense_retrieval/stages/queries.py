"""Corpus and queries: read or written by a language model, cleaned, drawn."""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.config import Config, LanguageModel
from dense_retrieval.corpus import dedup
from dense_retrieval.memo import Memo, memo_path
from dense_retrieval.queries import clean, draw, human
from dense_retrieval.queries.generate import generate, requests
from dense_retrieval.queries.prompts import Prompt, type_name
from dense_retrieval.records import RAW_QUERIES, Corpus, InputError, read_table, write_table
from dense_retrieval.stage import Store, fingerprint


def plain(config: Any, *without: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A node of the configuration as JSON values, without some keys, or with these only."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in without and (only is None or k in only)}


def counts_of(stage: Path) -> dict[str, Any]:
    """What a stage counted."""
    return json.loads((stage / "stage.json").read_text())["counts"]


SYNTHETIC_DEV = "synthetic_dev"  # a split: the synthetic queries of the training's dev passages

_WHAT_IS_ASKED = ("passages", "passage_characters", "passage_first", "seed")
_HOW_IT_ANSWERS = ("_target_", "model", "temperature", "top_p", "max_tokens", "dtype", "extra_body")


class QueryStages:
    """The corpus, and its training and held-out queries.

    Args:
        log: gets the training's curves as they come: values by name, and the optimiser step.
    """

    def __init__(self, config: Config, log: Callable[[Mapping[str, float], int], None]) -> None:
        self.config = config
        self.log = log
        self.store = Store(Path(config.cache_dir))
        cuda = torch.cuda.is_available()
        self.device = ("cuda" if cuda else "cpu") if config.device == "auto" else config.device
        self.bf16 = config.precision == "bf16-mixed"
        # Padded tokens a forward pass: what fits a CPU's cache, what fills a GPU.
        self.max_tokens = 65_536 if self.device.startswith("cuda") else 2_048

    @cached_property
    def corpus_folder(self) -> Path:
        loader = plain(
            self.config.data, "drop_self_matches", "queries", "mixed"
        )  # these are for later stages
        path = loader.get("path")
        settings = {key: value for key, value in loader.items() if key != "path"}
        inputs = {"path": Path(path)} if path and Path(path).exists() else {}  # else the loader says so

        def build_corpus(folder: Path) -> dict[str, int]:
            corpus = instantiate(loader)
            corpus.save(folder)
            return {"passages": len(corpus.passages)} | {s: len(q) for s, q in corpus.queries.items()}

        return self.store.stage("corpus", settings, inputs, build_corpus, version=2)

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus.load(self.corpus_folder)

    @cached_property
    def duplicates_folder(self) -> Path:
        """The passages that say no more than another one: none is trained on."""

        def build_duplicates(folder: Path) -> dict[str, int]:
            rows = dedup.duplicates(self.corpus.passages)
            np.save(folder / "rows.npy", rows)
            return {"passages": len(rows)}

        return self.store.stage("duplicates", {}, {"corpus": self.corpus_folder}, build_duplicates)

    @cached_property
    def untrained(self) -> np.ndarray:
        """Passage rows that are neither a query's source nor a candidate: held out, or duplicates."""
        return np.union1d(self.corpus.heldout, np.load(self.duplicates_folder / "rows.npy"))

    @cached_property
    def split(self) -> str:
        """Of the queries that are tested on.

        Raises:
            InputError: the corpus has no such split, or its queries are those trained on.
        """
        split = self.config.evaluation.split
        if split not in (SYNTHETIC_DEV, *self.corpus.queries):
            there = ", ".join([*sorted(self.corpus.queries), SYNTHETIC_DEV])
            raise InputError(f"evaluation.split={split}: this corpus has {there}; choose one of them")
        if split == "train" and "human" in self.config.querytype.types:
            raise InputError("evaluation.split=train with querytype=human would test on what is trained on")
        return split

    @property
    def _by_language_model(self) -> bool:
        return issubclass(OmegaConf.get_type(self.config.generator) or object, LanguageModel)

    def raw_folder(self, of: str = "train") -> Path:
        """Synthetic queries as the file has them, or as the language model wrote them: of passages
        to "train" on, or of the "heldout" ones."""
        inputs, settings = {"corpus": self.corpus_folder}, {}
        if self._by_language_model:
            # A larger context answers prompts that did not fit.
            settings = plain(self.config.generator, only=(*_WHAT_IS_ASKED, *_HOW_IT_ANSWERS, "context"))
            inputs["duplicates"] = self.duplicates_folder
            settings |= {"of": of, "prompts": [asdict(prompt) for prompt in self._prompts(of)]}
            inputs |= self._model
        else:
            path = self.config.generator.path
            inputs |= {"file": Path(path)} if path and Path(path).is_file() else {}  # else the reader says so

        def build_raw(folder: Path) -> dict[str, int]:
            if self._by_language_model:
                raw = self._ask(of)
            else:
                raw = instantiate(self.config.generator, passages=self.corpus.passages)
            write_table(raw, folder / "raw.parquet")
            return {"queries": len(raw)}

        return self.store.stage("raw_queries", settings, inputs, build_raw)

    @cached_property
    def _model(self) -> dict[str, Path]:
        """The language model's weights; a server's model is known by its name only."""
        files = getattr(self._backend, "files", None)
        return {"model": files} if files else {}

    @cached_property
    def _backend(self) -> Any:
        return instantiate(plain(self.config.generator, *_WHAT_IS_ASKED))

    def _prompts(self, of: str) -> list[Prompt]:
        types = self.config.querytype.types if of == "train" else self.config.evaluation.heldout_types
        prompts = [Prompt.load(t) for t in dict.fromkeys(types) if t != "human"]
        names = [prompt.querytype for prompt in prompts]
        if taken := [name for name in names if name == "human" or names.count(name) > 1]:
            raise InputError(
                f"querytype.types={list(types)}: two types are called {taken[0]!r}; rename the prompt's file"
            )
        return prompts

    def _ask(self, of: str) -> Dataset:
        """One query of each type for each passage."""
        generator, texts = self.config.generator, self.corpus.passages["text"]
        prompts = self._prompts(of)
        rows = np.array([row for row in self.corpus.heldout if texts[int(row)].strip()], dtype=np.int64)
        if of == "train":
            rows = draw.passages(texts, self.untrained, generator.passages, generator.seed)
        passages = [texts[int(row)][: generator.passage_characters].strip() for row in rows]
        made_by = plain(generator, only=_HOW_IT_ANSWERS)
        made_by |= {name: fingerprint(path) for name, path in self._model.items()}
        with Memo(memo_path(self.store.root, "completions", made_by)) as memo:
            asked = requests(passages, prompts, generator.passage_first, generator.seed)
            answers = generate(self._backend, memo, asked)
        del self._backend  # the language model's memory is needed
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        ids = self.corpus.passages["id"]
        columns = {
            "id": [f"{ids[int(row)]}-{prompt.querytype}" for row in rows for prompt in prompts],
            "text": [answer.text for answer in answers],
            "querytype": [prompt.querytype for _ in rows for prompt in prompts],
            "source": [int(row) for row in rows for _ in prompts],
            "finish": [answer.finish for answer in answers],
        }
        return Dataset.from_dict(columns, RAW_QUERIES)

    def cleaned_folder(self, of: str = "train") -> Path:
        """The synthetic queries that are fit to use, and those that are not, with the reason."""
        inputs = {"corpus": self.corpus_folder, "raw": self.raw_folder(of)}

        def build_cleaned(folder: Path) -> dict[str, Any]:
            raw = read_table(inputs["raw"] / "raw.parquet")
            kept, dropped = clean.clean_table(raw, self.corpus.passages)
            write_table(kept, folder / "queries.parquet")
            write_table(dropped, folder / "dropped.parquet")
            return clean.counts(raw, dropped, self.corpus.heldout)

        return self.store.stage("cleaned_queries", {}, inputs, build_cleaned, version=2)

    @cached_property
    def queries_folder(self) -> Path:
        """The training queries: drawn by type, none from a held-out passage or a duplicate."""
        total, seed = self.config.querytype.total, self.config.seed
        types = [type_name(t) for t in self.config.querytype.types]
        inputs = {"corpus": self.corpus_folder, "duplicates": self.duplicates_folder}
        if types != ["human"]:
            inputs["synthetic"] = self.cleaned_folder()

        def build_queries(folder: Path) -> dict[str, int]:
            parts = [human.from_train_split(self.corpus)] if "human" in types else []
            if "synthetic" in inputs:
                _none_is_lost(counts_of(inputs["synthetic"]), types)
                parts.append(read_table(inputs["synthetic"] / "queries.parquet"))
            found = concatenate_datasets(parts)
            usable = found.select(np.flatnonzero(~np.isin(found["source"], self.untrained)))
            table = draw.draw(usable, types, total, seed)
            write_table(table, folder / "queries.parquet")
            return {"usable": len(usable), "drawn": len(table)}

        settings = {"types": types, "total": total, "seed": seed}
        return self.store.stage("queries", settings, inputs, build_queries)

    @cached_property
    def queries(self) -> Dataset:
        return read_table(self.queries_folder / "queries.parquet")

    @cached_property
    def heldout_folder(self) -> Path:
        """Synthetic queries from the held-out passages, which test by query type."""
        types = [type_name(t) for t in self.config.evaluation.heldout_types]
        inputs = {"corpus": self.corpus_folder, "synthetic": self.cleaned_folder("heldout")}

        def build_heldout(folder: Path) -> dict[str, int]:
            found = read_table(inputs["synthetic"] / "queries.parquet")
            rows = np.isin(found["source"], self.corpus.heldout) & np.isin(found["querytype"], types)
            if not rows.any():
                raise InputError(
                    f"evaluation.heldout_types={types}: there is no such query of a held-out passage; let a "
                    "language model write them, with generator=, or leave evaluation.heldout_types empty"
                )
            write_table(found.select(np.flatnonzero(rows)), folder / "queries.parquet")
            return {"queries": int(rows.sum())}

        return self.store.stage("heldout_queries", {"types": types}, inputs, build_heldout)

    @cached_property
    def heldout_queries(self) -> Dataset:
        return read_table(self.heldout_folder / "queries.parquet")


def _none_is_lost(counted: Mapping[str, Mapping[str, Any]], types: Sequence[str]) -> None:
    """Say why a type has no query left, if cleaning dropped them all."""
    for name in types:
        of = counted.get(name, {"generated": 0, "cleaned": 0})
        if of["generated"] and not of["cleaned"]:
            why = ", ".join(f"{n} {reason}" for reason, n in of["dropped"].items())
            raise InputError(
                f"all {of['generated']} queries of type {name!r} were dropped ({why}); look at them with "
                "python -m dense_retrieval.generate and the same overrides"
            )
