"""The card of a tuned model: what the hub reads of it, and that its examples run."""

import re

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from dense_retrieval.evaluation import table
from dense_retrieval.evaluation.card import FOLDER, front_matter, model_card
from dense_retrieval.evaluation.table import TUNED, UNTUNED
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export

TAGS = {"sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval"}


def rows() -> list[table.SystemRow]:
    values = {
        UNTUNED: {"nDCG@10": np.array([0.25, 0.5]), "R@100": np.array([0.5, 1.0])},
        TUNED: {"nDCG@10": np.array([0.5, 0.75]), "R@100": np.array([1.0, 1.0])},
    }
    return table.rows(values, UNTUNED)


def card(base, results=None, verdicts=None, **changes) -> str:
    choices = {"data": "fiqa", "student": "bge_base", "teacher": "ms_marco_minilm"} | changes
    student = {"path": "BAAI/bge-base-en-v1.5", "pooling": "mean"}
    student |= {
        "query_prefix": 'query "$1": ',
        "passage_prefix": "passage: ",
        "tune": "both",
        "matryoshka": [],
    }
    if choices["student"] == "custom":
        student["path"] = str(base)
    data = {"name": "mteb/fiqa"} if choices["data"] == "fiqa" else {"path": "kale/cabbage.zip"}
    settings = {
        "data": data,
        "student": student,
        "teacher": {"path": "a/teacher"},
        "querytype": {"types": ["claim", "title"]},
        "evaluation": {"split": "test", "query_length": None},
    }
    loss = {"terms": {"listwise": {"weight": 1.0, "student_temperature": 0.0625}}}
    facts = {"choices": choices, "loss": loss, "passage_length": 64}
    return model_card(settings, results or {"": rows()}, verdicts or {"": "better"}, facts, base, {}, {})


def test_what_the_hub_reads(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\ntags: [a]\n---\n# BGE\n---\n")
    read = ModelCard(card(tmp_path))
    data = read.data
    assert data.library_name == "sentence-transformers" and data.pipeline_tag == "sentence-similarity"
    assert data.base_model == "BAAI/bge-base-en-v1.5" and data.license == "mit" and set(data.tags) == TAGS
    assert data.datasets == ["mteb/fiqa"] and data.metrics == ["ndcg_at_10", "recall_at_100"]
    assert data.model_name == "bge_base tuned on fiqa"
    found = {of.metric_type: of.metric_value for of in data.eval_results}
    assert found == {"ndcg_at_10": 0.625, "recall_at_100": 1.0}
    (result, _) = data.eval_results
    assert (result.task_type, result.dataset_type, result.dataset_split) == (
        "information-retrieval",
        "mteb/fiqa",
        "test",
    )
    assert (
        "| tuned student | 2 | 0.625  +0.250" in read.text
        and "1 x listwise (student_temperature 0.0625)" in read.text
    )


def test_what_is_not_known_is_left_out(tmp_path):
    """A folder without a license as the base, and a corpus of the user's own."""
    found = yaml.safe_load(card(tmp_path, student="custom", data="beir").split("---\n")[1])
    assert not {"license", "base_model", "datasets"} & found.keys()
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"name": "cabbage", "type": "cabbage", "split": "test"}


def test_a_result_a_corpus(tmp_path):
    titles = ["0-scifact", "1-fiqa"]
    text = card(tmp_path, dict.fromkeys(titles, rows()), dict.fromkeys(titles, "better"))
    results = ModelCard(text).data.eval_results
    assert [(of.dataset_name, of.metric_type) for of in results][::2] == [
        ("scifact", "ndcg_at_10"),
        ("fiqa", "ndcg_at_10"),
    ]


@pytest.mark.parametrize("text", ["# no metadata", "---\na: [\n---\n", "---\njust text\n---\n", ""])
def test_a_readme_without_metadata(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path / "README.md") == {} == front_matter(tmp_path / "none")


@pytest.mark.parametrize("named", ["sentence-transformers", "Qdrant"])
def test_the_examples_run(encoder_folder, tmp_path, named):
    """And put the prefixes before the texts."""
    pytest.importorskip("qdrant_client" if named == "Qdrant" else "sentence_transformers")
    prefixes = {"query_prefix": 'query "$1": ', "passage_prefix": "passage: "}
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64, **prefixes)
    text = card(tmp_path / "none")
    export(student, tmp_path / "model", text)
    code = text.partition(f"\n{named} ")[2].partition("```python\n")[2].partition("```")[0]
    namespace: dict = {}
    exec(compile(code.replace(FOLDER, str(tmp_path / "model")), named, "exec"), namespace)
    model = namespace["model"]
    plain = model.encode(['query "$1": a query', "passage: a passage", "passage: another passage"], prompt="")
    expected = plain[:1] @ plain[1:].T
    if named == "Qdrant":
        found = {point.payload["text"]: point.score for point in namespace["found"]}
        np.testing.assert_allclose([found["a passage"], found["another passage"]], expected[0], atol=1e-5)
    else:
        np.testing.assert_allclose(namespace["similarity"], expected, atol=1e-5)


def test_llama_index_and_langchain_are_given_the_prefixes(tmp_path):
    text = card(tmp_path)
    assert 'query_instruction="query \\"$1\\": ",' in text and 'text_instruction="passage: ",' in text
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(code, "card", "exec")
