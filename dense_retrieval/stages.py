"""The stages of a run, each with the settings and inputs that its artifact depends on.

Every property is the folder of a finished stage, built when it is first asked for.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dense_retrieval.candidates import bm25, filters, fusion
from dense_retrieval.config import Config
from dense_retrieval.groups import build
from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.hub import model_folder
from dense_retrieval.losses import temperature
from dense_retrieval.losses.combined import DistillationLoss
from dense_retrieval.queries import clean, draw, human
from dense_retrieval.records import QUERIES, CandidateList, Corpus, Groups, read_table, write_table
from dense_retrieval.search.index import search
from dense_retrieval.stage import Store
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.export import export
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.teacher.score import Teacher, score_candidates
from dense_retrieval.training.fit import fit
from dense_retrieval.training.module import DistillationModule


class Stages:
    """
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

    # -- texts -----------------------------------------------------------------------------

    @cached_property
    def corpus_folder(self) -> Path:
        loader = plain(self.config.data, "drop_self_matches", "queries")  # these are for later stages
        path = loader.get("path")
        settings = {key: value for key, value in loader.items() if key != "path"}
        inputs = {"path": Path(path)} if path else {}

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
        if types != ["human"] and self.config.generator.path:
            inputs["file"] = Path(self.config.generator.path)
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

    # -- embeddings ------------------------------------------------------------------------

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
        settings = {
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
        inputs = {"tokens": tokens, "student": self.training_folder if tuned else self.student_folder}

        def build_embeddings(folder: Path) -> None:
            student = self.tuned_student if tuned else self.student
            label = f"{'tuned' if tuned else 'untuned'} student: {of}"
            encode(student, Tokens.load(tokens), folder, device=self.device, bf16=self.bf16, label=label)

        folder = self.store.stage("embeddings", settings, inputs, build_embeddings)
        return np.load(folder / "embeddings.npy", mmap_mode="r")

    # -- labels ----------------------------------------------------------------------------

    @cached_property
    def candidates_folder(self) -> Path:
        """The training queries' candidates; an empty list where the source is not near the top."""
        settings = plain(self.config.retriever) | plain(self.config.groups, only=["source_top_k", "list_size"])
        inputs = {"corpus": self.corpus_folder, "queries": self.queries_folder}
        if self.config.retriever.dense:
            inputs |= {"passage_tokens": self.tokens_folder("passages"), "student": self.student_folder}
            inputs |= {"query_tokens": self.tokens_folder("train")}

        def build_candidates(folder: Path) -> dict[str, int]:
            found = self._retrieve()
            found.save(folder / "candidates.npz")
            return {"queries": len(found.passages), "kept": int((found.passages[:, 0] >= 0).sum())}

        return self.store.stage("candidates", settings, inputs, build_candidates)

    def _retrieve(self) -> CandidateList:
        retriever, groups = self.config.retriever, self.config.groups
        lists = []
        if retriever.bm25:
            lists.append(self._bm25(self.queries["text"]))
        if retriever.dense:
            embeddings = self.embeddings("train", tuned=False), self.embeddings("passages", tuned=False)
            lists.append(search(*embeddings, retriever.k, device=self.device))
        found = fusion.reciprocal_rank(lists, retriever.fusion_k) if len(lists) > 1 else lists[0]
        found = filters.drop_passages(found, self.corpus.heldout)
        source = np.array(self.queries["source"])
        near = filters.keep_source_within(found, source, groups.source_top_k)
        found = filters.cut(found, source, groups.list_size)
        return filters.drop(found, np.broadcast_to(~near[:, None], found.passages.shape))

    def _bm25(self, queries: Sequence[str]) -> CandidateList:
        r = self.config.retriever
        return bm25.search(self.corpus.passages["text"], queries, r.k, library=r.library, k1=r.k1, b=r.b)

    @cached_property
    def teacher(self) -> Teacher:
        return instantiate(self.config.teacher).to(self.device)

    @cached_property
    def teacher_inputs(self) -> dict[str, Path]:
        teacher = self.config.teacher
        folders = {"teacher": model_folder(teacher.path, teacher.revision)}
        return folders | ({"adapter": Path(teacher.adapter)} if teacher.adapter else {})

    @cached_property
    def scores_folder(self) -> Path:
        """The teacher's scores of the candidates."""
        inputs = {"candidates": self.candidates_folder} | self.teacher_inputs

        def build_scores(folder: Path) -> dict[str, int]:
            candidates = CandidateList.load(self.candidates_folder / "candidates.npz")
            self._score(candidates, self.queries["text"], folder, "teacher scores").save(folder / "scores.npz")
            return {"pairs": int((candidates.passages >= 0).sum())}

        return self.store.stage("scores", self._teacher_settings, inputs, build_scores)

    @property
    def _teacher_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.teacher.max_length, "bf16": self.bf16}

    def _score(
        self, candidates: CandidateList, queries: Sequence[str], folder: Path, label: str
    ) -> CandidateList:
        passages = self.corpus.passages["text"]
        return score_candidates(self.teacher, candidates, queries, passages, folder, bf16=self.bf16, label=label)

    @cached_property
    def groups_folder(self) -> Path:
        """Training groups, and the normalised scores of all lists."""
        settings = plain(self.config.groups, "source_top_k") | {"seed": self.config.seed}

        def build_groups(folder: Path) -> dict[str, Any]:
            built = build.build(
                CandidateList.load(self.scores_folder / "scores.npz"),
                np.array(self.queries["source"]),
                self.queries["querytype"],
                **settings,
            )
            built.groups.save(folder / "groups.npz")
            np.save(folder / "normalised.npy", built.normalised)
            return built.yields

        return self.store.stage("groups", settings, {"scores": self.scores_folder}, build_groups)

    @cached_property
    def groups(self) -> Groups:
        return Groups.load(self.groups_folder / "groups.npz")

    @cached_property
    def yields(self) -> dict[str, dict[str, int]]:
        """Query type -> step -> queries left."""
        return json.loads((self.groups_folder / "stage.json").read_text())["counts"]

    # -- training --------------------------------------------------------------------------

    @cached_property
    def loss(self) -> DistillationLoss:
        """With the temperatures that are "auto" found."""
        loss = instantiate(self.config.loss)
        if loss.teacher_temperature == "auto":
            loss = replace(loss, teacher_temperature=self._teacher_temperature())
        if loss.student_temperature == "auto":
            loss = replace(loss, student_temperature=self._student_temperature(loss.teacher_temperature))
        return loss

    def _teacher_temperature(self) -> float:
        normalised = np.load(self.groups_folder / "normalised.npy")
        candidates = CandidateList.load(self.candidates_folder / "candidates.npz").passages
        is_source = candidates == np.array(self.queries["source"])[:, None]
        usable = is_source.any(1) & np.isfinite(normalised).any(1)
        return temperature.teacher_temperature(normalised[usable], is_source[usable].argmax(1))

    def _student_temperature(self, teacher_temperature: float) -> float:
        train = ~self.groups.dev
        queries = self.embeddings("train", tuned=False)[self.groups.query[train]]
        passages = self.embeddings("passages", tuned=False)[self.groups.passages[train]]
        cosines = np.einsum("gd,gkd->gk", queries, passages)
        return temperature.student_temperature(cosines, self.groups.teacher[train], teacher_temperature)

    @cached_property
    def training_folder(self) -> Path:
        """The tuned student, with how it was trained in ``training.json``."""
        trainer = plain(self.config.trainer, "chunk_tokens", "graph_tokens", "devices")
        settings = {
            "trainer": trainer,
            "loss": asdict(self.loss),
            "student": plain(self.config.student, "path", "revision", "trust_remote_code"),
            "precision": self.config.precision,
            "seed": self.config.seed,
        }
        inputs = {
            "groups": self.groups_folder,
            "passages": self.tokens_folder("passages"),
            "queries": self.tokens_folder("train"),
            "student": self.student_folder,
        }
        return self.store.stage("training", settings, inputs, self._train)

    def _train(self, folder: Path) -> dict[str, Any]:
        torch.manual_seed(self.config.seed)
        student, trainer = instantiate(self.config.student), self.config.trainer
        data = GroupsDataModule(
            self.groups, trainer.batch_size, self.loss.false_negative_ratio, self.config.seed
        )
        module = DistillationModule(
            student,
            self.loss,
            Tokens.load(self.tokens_folder("train")),
            Tokens.load(self.tokens_folder("passages")),
            steps_per_epoch=len(data.train_dataloader()),
            **plain(trainer, "batch_size", "patience", "devices"),
        )
        summary = fit(
            module,
            data,
            folder,
            max_epochs=trainer.max_epochs,
            patience=trainer.patience,
            precision=self.config.precision,
            accelerator="gpu" if self.device.startswith("cuda") else "cpu",
            devices=trainer.devices,
            log=self.log,
        )
        export(student, folder / "model", "")
        for name in ("last.ckpt", "best.safetensors"):
            (folder / name).unlink()
        return {"best_epoch": summary["best_epoch"], "steps": summary["steps"]}

    @cached_property
    def tuned_student(self) -> BiEncoder:
        return instantiate(self.config.student, path=str(self.training_folder / "model"), revision=None)

    # -- rankings of the test queries ------------------------------------------------------

    def _ranking(self, name: str, settings: dict, inputs: dict[str, Path], rank: Callable) -> CandidateList:
        settings = settings | {"drop_self_matches": self.config.data.drop_self_matches}

        def build_ranking(folder: Path) -> None:
            ranking = rank()
            if self.config.data.drop_self_matches:
                ids = self.corpus.queries["test"]["id"], self.corpus.passages["id"]
                ranking = filters.drop_self_matches(ranking, *ids)
            ranking.save(folder / "ranking.npz")

        folder = self.store.stage(name, settings, inputs, build_ranking)
        return CandidateList.load(folder / "ranking.npz")

    @cached_property
    def bm25_ranking(self) -> CandidateList:
        settings = plain(self.config.retriever, only=["library", "k1", "b", "k"])
        return self._ranking(
            "bm25", settings, {"corpus": self.corpus_folder}, lambda: self._bm25(self.corpus.queries["test"]["text"])
        )

    def student_ranking(self, tuned: bool) -> CandidateList:
        settings = {"k": RANKING_DEPTH, "bf16": self.bf16, "pooling": self.config.student.pooling}
        inputs = {"passages": self.tokens_folder("passages"), "queries": self.tokens_folder("test")}
        inputs["student"] = self.training_folder if tuned else self.student_folder

        def rank() -> CandidateList:
            embeddings = self.embeddings("test", tuned), self.embeddings("passages", tuned)
            return search(*embeddings, RANKING_DEPTH, device=self.device)

        return self._ranking("ranking", settings, inputs, rank)

    @cached_property
    def teacher_queries(self) -> np.ndarray:
        """``(n,)`` rows of the judged test queries that the teacher reranks for."""
        judged, n = np.unique(self.corpus.qrels["test"].query), self.config.evaluation.headroom_queries
        if n is None or n >= len(judged):
            return judged
        return np.sort(np.random.default_rng(self.config.seed).choice(judged, n, replace=False))

    @cached_property
    def teacher_ranking(self) -> CandidateList:
        """The teacher's order of the untuned student's best passages, then the student's."""
        k = self.config.evaluation.headroom_k
        settings = self._teacher_settings | {"k": k, "queries": self.teacher_queries.tolist()}
        inputs = {"corpus": self.corpus_folder, "passages": self.tokens_folder("passages")}
        inputs |= {"student": self.student_folder} | self.teacher_inputs

        def build_teacher_ranking(folder: Path) -> None:
            untuned = self.student_ranking(tuned=False)
            top = np.full((len(untuned.passages), k), -1, dtype=np.int64)
            top[self.teacher_queries] = untuned.passages[self.teacher_queries, :k]
            candidates = CandidateList(top, np.zeros(top.shape, dtype=np.float32))
            texts = self.corpus.queries["test"]["text"]
            ranked = self._score(candidates, texts, folder, "teacher reranking").ranked()
            rest = CandidateList(untuned.passages[:, k:], np.full_like(untuned.scores[:, k:], -np.inf))
            CandidateList(
                np.concatenate([ranked.passages, rest.passages], 1), np.concatenate([ranked.scores, rest.scores], 1)
            ).save(folder / "ranking.npz")

        folder = self.store.stage("teacher_ranking", settings, inputs, build_teacher_ranking)
        return CandidateList.load(folder / "ranking.npz")


    @property
    def artifacts(self) -> dict[str, Path]:
        """The folders of the main stages."""
        names = ["corpus", "queries", "candidates", "scores", "groups", "training"]
        return {name: getattr(self, f"{name}_folder") for name in names}


RANKING_DEPTH = 101  # 100 are measured; one more, for where a query finds itself


def plain(config: Any, *without: str, only: Sequence[str] | None = None) -> dict[str, Any]:
    """A node of the configuration as JSON values, without some keys, or with these only."""
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items() if k not in without and (only is None or k in only)}
