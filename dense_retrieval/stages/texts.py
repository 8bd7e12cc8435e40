"""Corpus, training queries, their token ids and embeddings."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.config import Config
from dense_retrieval.hub import model_folder
from dense_retrieval.queries import clean, draw, human
from dense_retrieval.records import QUERIES, Corpus, read_table, write_table
from dense_retrieval.stage import Store
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.tokens import Tokens, tokenize


def plain(config: Any, *without: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A node of the configuration as JSON values, without some keys, or with these only."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in without and (only is None or k in only)}


class TextStages:
    """Corpus, queries, tokens, embeddings.

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
        loader = plain(self.config.data, "drop_self_matches", "queries")  # these are for later stages
        path = loader.get("path")
        settings = {key: value for key, value in loader.items() if key != "path"}
        inputs = {"path": Path(path)} if path and Path(path).exists() else {}  # else the loader says so

        def build_corpus(folder: Path) -> dict[str, int]:
            corpus = instantiate(loader)
            corpus.save(folder)
            return {"passages": len(corpus.passages)} | {s: len(q) for s, q in corpus.queries.items()}

        return self.store.stage("corpus", settings, inputs, build_corpus)

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus.load(self.corpus_folder)

    @cached_property
    def queries_folder(self) -> Path:
        """The training queries, cleaned, drawn by type."""
        types = list(self.config.querytype.types)
        inputs = {"corpus": self.corpus_folder}
        file = self.config.generator.path
        if types != ["human"] and file and Path(file).is_file():  # else the reader says so
            inputs["file"] = Path(file)
        settings = plain(self.config.querytype) | {"seed": self.config.seed}

        def build_queries(folder: Path) -> dict[str, int]:
            found, dropped = self._all_queries(types)
            table = draw.draw(found, types, self.config.querytype.total, self.config.seed)
            write_table(table, folder / "queries.parquet")
            return {"found": len(found), "drawn": len(table)} | dropped

        return self.store.stage("queries", settings, inputs, build_queries)

    def _all_queries(self, types: list[str]) -> tuple[Dataset, dict[str, int]]:
        """Training queries whose source is not held out, and how many were dropped, by reason."""
        parts = []
        dropped: Counter[str] = Counter()
        if "human" in types:
            parts.append(human.from_train_split(self.corpus))
        if types != ["human"]:
            raw = instantiate(self.config.generator, passages=self.corpus.passages)
            texts = self.corpus.passages["text"]
            cleaned = [clean.clean(q["text"], q["querytype"], texts[q["source"]]) for q in raw]
            dropped.update(f"dropped: {reason}" for text, reason in cleaned if text is None)
            kept = [row for row, (text, _) in enumerate(cleaned) if text is not None]
            columns = raw.select(kept).to_dict() | {"text": [cleaned[row][0] for row in kept]}
            parts.append(Dataset.from_dict(columns, QUERIES))
        table = concatenate_datasets(parts)
        open_sources = np.flatnonzero(~np.isin(table["source"], self.corpus.heldout))
        if len(open_sources) < len(table):
            dropped["dropped: held-out passage"] = len(table) - len(open_sources)
        return table.select(open_sources), dict(dropped)

    @cached_property
    def queries(self) -> Dataset:
        return read_table(self.queries_folder / "queries.parquet")

    @cached_property
    def student_folder(self) -> Path:
        return model_folder(self.config.student.path, self.config.student.revision)

    @cached_property
    def student(self) -> BiEncoder:
        """The untuned student."""
        return instantiate(self.config.student)

    def tokens_folder(self, of: str) -> Path:
        """Token ids of the "passages", the "train" queries or the "test" queries."""
        student = self.config.student
        passages = of == "passages"
        settings: dict[str, Any] = {
            "of": of,
            "length": student.passage_length if passages else student.query_length,
            "prefix": student.passage_prefix if passages else student.query_prefix,
        }
        inputs = {
            "texts": self.queries_folder if of == "train" else self.corpus_folder,
            "tokenizer": self.student_folder,
        }

        def build_tokens(folder: Path) -> dict[str, int]:
            texts = {
                "passages": lambda: self.corpus.passages,
                "train": lambda: self.queries,
                "test": lambda: self.corpus.queries["test"],
            }[of]()["text"]
            return tokenize(texts, self.student.tokenizer, settings["length"], settings["prefix"], folder)

        return self.store.stage("tokens", settings, inputs, build_tokens)

    def embeddings(self, of: str, tuned: bool) -> np.ndarray:
        """``(N, D)`` float32, memory-mapped, by the tuned or the untuned student."""
        settings = {"pooling": self.config.student.pooling, "bf16": self.bf16}
        tokens = self.tokens_folder(of)
        trained = self.training_folder if tuned else self.student_folder  # type: ignore[attr-defined]
        inputs = {"tokens": tokens, "student": trained}

        def build_embeddings(folder: Path) -> None:
            student = self.tuned_student if tuned else self.student  # type: ignore[attr-defined]
            label = f"{'tuned' if tuned else 'untuned'} student: {of}"
            encode(
                student,
                Tokens.load(tokens),
                folder,
                device=self.device,
                bf16=self.bf16,
                max_tokens=self.max_tokens,
                label=label,
            )

        folder = self.store.stage("embeddings", settings, inputs, build_embeddings)
        return np.load(folder / "embeddings.npy", mmap_mode="r")
