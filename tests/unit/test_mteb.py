"""A model on a task of mteb's has the nDCG@10 that this package measures on the same data."""

import json
import re
import sys

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset  # noqa: E402
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from dense_retrieval import mteb as command  # noqa: E402
from dense_retrieval.candidates.dense import search  # noqa: E402
from dense_retrieval.corpus.beir import read_folder  # noqa: E402
from dense_retrieval.evaluation.evaluate import per_query  # noqa: E402
from dense_retrieval.records import InputError  # noqa: E402
from dense_retrieval.student.bi_encoder import BiEncoder  # noqa: E402
from dense_retrieval.student.export import export  # noqa: E402


def task_of(corpus):
    """mteb's task of a folder in BEIR's layout."""
    read = read_folder(str(corpus))
    ids, passages = read.queries["test"]["id"], read.passages
    qrels: dict[str, dict[str, int]] = {}
    judged = read.qrels["test"]
    for query, passage, grade in zip(judged.query, judged.passage, judged.relevance, strict=True):
        qrels.setdefault(ids[int(query)], {})[passages["id"][int(passage)]] = int(grade)

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalRetrieval",
            description="A folder of this machine.",
            reference=None,
            dataset={"path": str(corpus), "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, num_proc=None, *, timer=None, **kwargs):
            split = {
                "corpus": Dataset.from_dict({"id": passages["id"], "text": passages["text"]}),
                "queries": Dataset.from_dict({"id": ids, "text": read.queries["test"]["text"]}),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return Local(), read


@pytest.mark.parametrize("prefixes", [("", ""), ("star acid ", "the ocean ")])
def test_its_ndcg_is_ours(corpus, encoder_folder, tmp_path, prefixes):
    """Prefixes are words of the tiny vocabulary: without them the embeddings, and the ranking, are others."""
    settings = {"query_prefix": prefixes[0], "passage_prefix": prefixes[1]}
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32, **settings)
    export(student, tmp_path / "model", "")
    task, read = task_of(corpus)

    def embedded(texts, prefix):
        tokens = student.tokenizer(
            [prefix + text for text in texts],
            truncation=True,
            max_length=32,
            padding=True,
            return_tensors="pt",
        )
        return student.eval()(tokens["input_ids"], tokens["attention_mask"]).detach().numpy()

    queries = embedded(list(read.queries["test"]["text"]), prefixes[0])
    found = search(queries, embedded(list(read.passages["text"]), prefixes[1]), 40)
    ours = per_query(found, read.qrels["test"], ["nDCG@10"])["nDCG@10"]
    if prefixes != ("", ""):
        without = search(
            embedded(list(read.queries["test"]["text"]), ""), embedded(list(read.passages["text"]), ""), 40
        )
        assert np.nanmean(per_query(without, read.qrels["test"], ["nDCG@10"])["nDCG@10"]) != np.nanmean(ours)

    ((name, split, metric, score),) = command.evaluate(
        tmp_path / "model", [task], tmp_path / "mteb", device="cpu"
    )
    assert (name, split, metric) == ("LocalRetrieval", "test", "ndcg_at_10")
    assert score == pytest.approx(np.nanmean(ours), abs=1e-5)
    (file,) = (tmp_path / "mteb").rglob("LocalRetrieval.json")
    written = json.loads(file.read_text())
    assert written["scores"]["test"][0]["ndcg_at_10"] == pytest.approx(score) and written["mteb_version"]
    assert "dense_retrieval" in str(file.relative_to(tmp_path)).replace("__", "/")


def test_wrong_settings_are_one_line(encoder_folder, monkeypatch):
    with pytest.raises(InputError, match=r"tasks=\[NAME,...\] or benchmark="):
        command.tasks_of([], None)
    with pytest.raises(
        InputError, match="'NanoFiQA2018Retrievl' not found. Did you mean: 'NanoFiQA2018Retrieval'"
    ):
        command.tasks_of(["NanoFiQA2018Retrievl"], None)
    for word, said in {
        "task=[A]": "task: there is no such setting; did you mean tasks?",
        "batch_size=0": "batch_size=0 is out of range; it is 1 or more",
    }.items():
        monkeypatch.setattr(sys, "argv", ["mteb", str(encoder_folder), word])
        with pytest.raises(SystemExit, match=f"^error: {re.escape(said)}$"):
            command.main()
