"""What each system finds for the test queries."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset

from dense_retrieval.candidates import filters
from dense_retrieval.records import CandidateList, Qrels
from dense_retrieval.search.index import search
from dense_retrieval.stages.queries import SYNTHETIC_DEV, plain
from dense_retrieval.stages.training import TrainingStages

RANKING_DEPTH = 101  # 100 are measured; one more, for where a query finds itself


class Stages(TrainingStages):
    """The whole chain, up to the rankings of the test queries."""

    @property
    def members(self) -> dict[str, "Stages"]:
        """The corpora that are tested on: of one corpus it alone, without a name."""
        return {"": self}

    def test_queries(self, of: str) -> tuple[Dataset, Qrels]:
        """The human queries of a split; or synthetic ones, each of which is to find its own passage: of the
        "heldout" passages, or of the training queries those that training only measures (SYNTHETIC_DEV)."""
        if of in self.corpus.queries:
            return self.corpus.queries[of], self.corpus.qrels[of]
        queries = self.heldout_queries if of == "heldout" else self.dev_queries
        rows = np.arange(len(queries))
        return queries, Qrels(rows, np.array(queries["source"], dtype=np.int64), np.ones_like(rows))

    def _ranking(
        self, name: str, of: str, settings: dict, inputs: dict[str, Path], rank: Callable
    ) -> CandidateList:
        settings = settings | {"drop_self_matches": self.config.data.drop_self_matches}

        def build_ranking(folder: Path) -> None:
            ranking = rank()
            if settings["drop_self_matches"]:
                ids = self.test_queries(of)[0]["id"], self.corpus.passages["id"]
                ranking = filters.drop_self_matches(ranking, *ids)
            ranking.save(folder / "ranking.npz")

        folder = self.store.stage(name, settings, inputs, build_ranking)
        return CandidateList.load(folder / "ranking.npz")

    def bm25_ranking(self, of: str) -> CandidateList:
        settings = plain(self.config.retriever, only=["library", "k1", "b"]) | {"k": RANKING_DEPTH, "of": of}
        inputs = {"corpus": self.corpus_folder}
        if of not in self.corpus.queries:
            inputs["queries"] = self.heldout_folder if of == "heldout" else self.groups_folder
        texts = self.test_queries(of)[0]["text"]
        return self._ranking("bm25", of, settings, inputs, lambda: self.bm25.search(texts, RANKING_DEPTH))

    def student_ranking(self, tuned: bool, of: str) -> CandidateList:
        settings = {"k": RANKING_DEPTH, "bf16": self.bf16, "pooling": self.config.student.pooling}
        inputs = {"passages": self.tokens_folder("passages"), "queries": self.tokens_folder(of)}
        inputs["student"] = self.tuned_folder if tuned else self.student_folder

        def rank() -> CandidateList:
            embeddings = self.embeddings(of, tuned), self.embeddings("passages", tuned)
            return search(*embeddings, RANKING_DEPTH, device=self.device)

        return self._ranking("ranking", of, settings, inputs, rank)

    @cached_property
    def teacher_queries(self) -> np.ndarray:
        """``(n,)`` rows of the judged test queries that the teacher reranks for."""
        judged = np.unique(self.test_queries(self.split)[1].query)
        n = self.config.evaluation.headroom_queries
        if n is None or n >= len(judged):
            return judged
        return np.sort(np.random.default_rng(0).choice(judged, n, replace=False))  # whatever the seed

    @cached_property
    def teacher_ranking(self) -> CandidateList:
        """The teacher's order of the untuned student's best passages, then the student's order.

        Empty for the test queries outside :attr:`teacher_queries`.
        """
        k = self.config.evaluation.headroom_k
        settings = self.teacher_settings | {"k": k, "queries": self.teacher_queries.tolist()}
        settings |= {"of": self.split, "pooling": self.config.student.pooling}
        settings |= plain(self.config.data, only=["drop_self_matches"])
        inputs = {"corpus": self.corpus_folder, "passages": self.tokens_folder("passages")}
        inputs["query_tokens"] = self.tokens_folder(self.split)
        inputs |= {"student": self.student_folder} | self.teacher_inputs
        if self.split == SYNTHETIC_DEV:
            inputs["queries"] = self.groups_folder

        def build_teacher_ranking(folder: Path) -> None:
            found = self.student_ranking(False, self.split)
            others = np.setdiff1d(np.arange(len(found.passages)), self.teacher_queries)
            found.passages[others] = -1
            top = CandidateList(found.passages[:, :k], found.scores[:, :k])
            queries, _ = self.test_queries(self.split)
            texts, types = queries["text"], queries["querytype"]
            ranked = self.score(top, self.split, texts, types, "teacher reranking").ranked()
            least = np.where(np.isfinite(ranked.scores), ranked.scores, np.inf).min(1, keepdims=True)
            # What it did not see stands below what it did, in the student's order.
            below = np.where(found.passages >= 0, least - 1 - np.arange(found.passages.shape[1]), -np.inf)
            CandidateList(
                np.concatenate([ranked.passages, found.passages[:, k:]], 1),
                np.concatenate([ranked.scores, below[:, k:]], 1).astype(np.float32),
            ).save(folder / "ranking.npz")

        folder = self.store.stage("teacher_ranking", settings, inputs, build_teacher_ranking)
        return CandidateList.load(folder / "ranking.npz")

    @property
    def artifacts(self) -> dict[str, Path]:
        """The folders of the main stages."""
        names = ["corpus", "queries", "candidates", "scores", "groups", "training"]
        return {name: getattr(self, f"{name}_folder") for name in names}
