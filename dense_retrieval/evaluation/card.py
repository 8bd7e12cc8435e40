"""The README.md of a tuned model: what it is, how it was made, how good it is, how it is used."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from dense_retrieval.evaluation import report, table, vectors
from dense_retrieval.evaluation.learning_curve import Point

TEMPLATE = Path(__file__).with_name("card.md")
FOLDER = "this folder"  # as which the card's examples know the model
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense-retrieval"]
_ON_THE_HUB = {"all_minilm": "sentence-transformers/all-MiniLM-L6-v2"}  # choice of student -> its model
_LICENSE = ("license", "license_name", "license_link")
_METRICS = {"nDCG": "ndcg", "R": "recall", "RR": "mrr", "AP": "map", "P": "precision"}  # as MTEB names them


def model_card(
    settings: Mapping[str, Any],
    rows: Mapping[str, Sequence[table.SystemRow]],
    verdicts: Mapping[str, str],
    facts: Mapping[str, Any],
    base: Path,
    smaller: Mapping[str, Sequence[vectors.VectorsRow]],
    curves: Mapping[str, Sequence[Point]],
) -> str:
    """README.md of the model, with the Hugging Face hub's metadata.

    Args:
        rows, verdicts, smaller: the results by corpus.
        base: folder of the untuned student, whose README.md may say its license.
        curves: by corpus what was found out while a budget of queries was spent on it, if one was.
    """
    student = settings["student"]
    alone = student["tune"] == "queries"

    def named(group: str) -> str:
        """The choice, or where it was read from, if that is a user's own."""
        choice = facts["choices"][group]
        return settings[group]["path"] if choice in ("custom", "beir", "documents") else choice

    asked = settings["evaluation"]["query_length"]
    filled = {
        "metadata": yaml.safe_dump(_metadata(settings, rows, facts, base), sort_keys=False),
        "title": f"A {'query encoder' if alone else 'dense retriever'} tuned on {_corpus_name(settings, facts)}",
        "base": named("student"),
        "pooling": student["pooling"],
        "queries": "Queries as long as the model can read"
        if asked is None
        else f"Queries of up to {asked} tokens",
        "passage_length": facts["passage_length"],
        "query_prefix": repr(student["query_prefix"]),
        "passage_prefix": repr(student["passage_prefix"]),
        "query_instruction": json.dumps(student["query_prefix"]),
        "text_instruction": json.dumps(student["passage_prefix"]),
        "data": named("data"),
        "querytypes": ", ".join(settings["querytype"]["types"]),
        "teacher": named("teacher"),
        "formula": report.formula(facts["loss"]["terms"]),
        "tested": table.TESTED.get(settings["evaluation"]["split"], "Test queries of the corpus"),
        "results": _results(rows, verdicts, smaller, curves),
        "untuned": f"{table.QUERIES_ALONE}, and an index of `{named('student')}` stays as it is.\n\n"
        if alone
        else "",
        "load": f'\nuntuned = SentenceTransformer("{named("student")}")' if alone else "",
        "passages": "untuned" if alone else "model",
        "truncated": _truncated(student["matryoshka"]),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(filled)


def _results(
    rows: Mapping[str, Sequence[table.SystemRow]],
    verdicts: Mapping[str, str],
    smaller: Mapping[str, Sequence[vectors.VectorsRow]],
    curves: Mapping[str, Sequence[Point]],
) -> str:
    found = []
    for title, of in rows.items():
        found.append(f"{title}\n\n{table.markdown(list(of))}\n{verdicts[title]}\n")
        if title in smaller:
            found.append(
                "Smaller vectors, differences and p-values (paired t-test) to the same student's whole float32 "
                "ones:\n\n" + vectors.markdown(smaller[title])
            )
    for title, points in curves.items():
        had = report.curve(points).replace("  ", "- ")
        said = "On the dev queries, after each part of the budget of queries"
        found.append(f"{' '.join(filter(None, (said, title)))}:\n\n{had}")
    return "\n".join(found).strip()


def _truncated(matryoshka: Sequence[int]) -> str:
    if not matryoshka:
        return ""
    return f"""
Trained at {", ".join(map(str, matryoshka))} dimensions (Matryoshka): embeddings may be cut to their first components.
What is cut has no longer length 1, unless `normalize_embeddings=True` makes it so.

```python
model = SentenceTransformer("{FOLDER}", truncate_dim={matryoshka[-1]})
embeddings = model.encode_document(["a passage"], normalize_embeddings=True)
```
"""


def _metadata(
    settings: Mapping[str, Any],
    rows: Mapping[str, Sequence[table.SystemRow]],
    facts: Mapping[str, Any],
    base: Path,
) -> dict[str, Any]:
    """As https://huggingface.co/docs/hub/model-cards has it; what is not known is left out."""
    said = front_matter(base / "README.md")
    path, name = settings["student"]["path"], _corpus_name(settings, facts)
    base_model = path if not Path(path).is_dir() else said.get("base_model")
    base_model = _ON_THE_HUB.get(facts["choices"]["student"], base_model)
    dataset = settings["data"].get("name")  # of a corpus from the hub
    tuned = {
        title: next(row for row in of if row.system == table.TUNED)
        for title, of in rows.items()
        if any(row.system == table.TUNED for row in of)
    }
    found = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": _TAGS,
        "base_model": base_model,
        **{key: said.get(key) for key in _LICENSE},
        "datasets": [dataset] if dataset else None,
        "metrics": list(dict.fromkeys(_metric(m) for row in tuned.values() for m in row.means)),
        "model-index": [
            {
                "name": f"{facts['choices']['student']} tuned on {name}",
                "results": [
                    {
                        "task": {"type": "information-retrieval", "name": "Information Retrieval"},
                        "dataset": {
                            "name": title.partition("-")[2] or name,
                            "type": dataset or title.partition("-")[2] or name,
                            "split": settings["evaluation"]["split"],
                        },
                        "metrics": [
                            {"type": _metric(metric), "name": metric, "value": round(value, 4)}
                            for metric, value in row.means.items()
                        ],
                    }
                    for title, row in tuned.items()
                ],
            }
        ],
    }
    return {key: value for key, value in found.items() if value}


def front_matter(readme: Path) -> dict[str, Any]:
    """The metadata of a model's README.md; empty where it has none that can be read."""
    if not readme.is_file():
        return {}
    before, _, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---")[0]) if not before.strip() else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _corpus_name(settings: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """``fiqa``, or of a user's own the name of its folder."""
    path = settings["data"].get("path")
    return Path(path).stem if path else facts["choices"]["data"]


def _metric(name: str) -> str:
    """
    >>> _metric("nDCG@10"), _metric("RR@10"), _metric("Success@5")
    ('ndcg_at_10', 'mrr_at_10', 'success_at_5')
    """
    measure, _, cutoff = name.partition("@")
    return "_at_".join(filter(None, (_METRICS.get(measure, measure.lower()), cutoff)))
