"""A Matryoshka student, and smaller vectors, as a user asks for them; every number recomputed from the embeddings."""

import json

import faiss
import ir_measures
import numpy as np
import pyarrow.parquet as parquet
import pytest
from scipy.stats import ttest_rel
from sentence_transformers import SentenceTransformer

ASKED = ["student.matryoshka=[16,6]", "evaluation.dimensions=[16,6]"]
ASKED += ["evaluation.vectors=[float32,int8,binary]", "logger=none", "hydra.run.dir=runs/small"]


def kept(passages: np.ndarray, kind: str) -> np.ndarray:
    if kind == "int8":
        quantizer = faiss.ScalarQuantizer(passages.shape[1], faiss.ScalarQuantizer.QT_8bit)
        quantizer.train(passages)
        return quantizer.decode(quantizer.compute_codes(passages))
    return np.where(passages > 0, 1.0, -1.0) if kind == "binary" else passages


@pytest.fixture(scope="module")
def ran(run, command, project):
    made = {file.parent.name for file in (project / "cache").glob("*/stage.json")}
    shown = run(project, *command, *ASKED).stdout
    new = {file.parent.name for file in (project / "cache").glob("*/stage.json")} - made
    return project, {name.rpartition("-")[0] for name in new}, shown


def test_only_the_student_and_rankings_are_new(ran):
    folder, new, _ = ran
    assert new == {"training", "embeddings", "ranking", "hybrid"}
    usual, asked = (json.loads((folder / f"runs/{of}/metrics.json").read_text()) for of in ("first", "small"))
    assert usual["systems"]["untuned student"] == asked["systems"]["untuned student"]
    assert usual["systems"]["tuned student"] != asked["systems"]["tuned student"]
    assert (
        "vectors" not in usual
        and "dimensions" not in usual["loss"]
        and asked["loss"]["dimensions"] == [16, 6]
    )
    assert "Matryoshka" not in (folder / "runs/first/model/README.md").read_text()


def test_the_numbers_are_those_of_the_exported_models_embeddings(ran, corpus):
    folder, _, shown = ran
    facts = json.loads((folder / "runs/small/metrics.json").read_text())
    texts, asked = (
        {line["_id"]: line["text"] for line in map(json.loads, (corpus / name).read_text().splitlines())}
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    judged = list(ir_measures.read_trec_qrels(str(folder / "runs/small/qrels.trec")))
    queries = [qrel.query_id for qrel in judged]
    model = SentenceTransformer(str(folder / "runs/small/model"), device="cpu")
    sides = model.encode_query([asked[q] for q in queries]), model.encode_document(list(texts.values()))
    values, rows = {}, [row for row in facts["vectors"] if row["student"] == "tuned student"]
    assert [(row["dimension"], row["kind"], row["bytes"]) for row in rows] == [
        *((16, "float32", 64), (16, "int8", 16), (16, "binary", 2)),
        *((6, "float32", 24), (6, "int8", 6), (6, "binary", 1)),
    ]
    for row in rows:
        short = [of[:, : row["dimension"]] for of in sides]
        short = [of / np.linalg.norm(of, axis=1, keepdims=True) for of in short]
        order = np.argsort(-short[0] @ kept(short[1], row["kind"]).T, axis=1, kind="stable")
        ranks = -np.argsort(order, axis=1)  # of a tiny model's few bits many are the same: ties are by row
        found = {q: dict(zip(texts, of.tolist(), strict=True)) for q, of in zip(queries, ranks, strict=True)}
        each = {v.query_id: v.value for v in ir_measures.iter_calc([ir_measures.nDCG @ 10], judged, found)}
        values[row["dimension"], row["kind"]] = np.array([each[q] for q in queries])
        assert row["means"]["nDCG@10"] == pytest.approx(np.mean(list(each.values())), abs=1e-6)
    whole, last = values[16, "float32"], values[6, "float32"]
    assert rows[0]["means"] == facts["systems"]["tuned student"]["means"] and not rows[0]["differences"]
    assert rows[3]["differences"]["nDCG@10"]["mean"] == pytest.approx((last - whole).mean(), abs=1e-6)
    assert rows[3]["differences"]["nDCG@10"]["p_value"] == pytest.approx(ttest_rel(last, whole).pvalue)
    per_query = parquet.read_table(folder / "runs/small/per_query.parquet").to_pandas()
    assert not per_query["system"].str.contains("int8").any()  # no systems of a comparison
    card = (folder / "runs/small/model/README.md").read_text()
    line = f"| tuned student | 6 float32 | 24 | {last.mean():.3f}"
    assert line in card and "truncate_dim=6" in card and "smaller vectors" in shown and "6 binary" in shown
