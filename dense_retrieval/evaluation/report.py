"""What a run leaves in its folder."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dense_retrieval.evaluation import evaluate, table
from dense_retrieval.evaluation.learning_curve import Point
from dense_retrieval.files import written_through
from dense_retrieval.records import CandidateList, Qrels
from dense_retrieval.student.export import write_lengths


def write(
    folder: Path,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    qrels: Qrels,
    rankings: Mapping[str, CandidateList],
    values: Mapping[str, Mapping[str, np.ndarray]],
    rows: Sequence[table.SystemRow],
    facts: Mapping[str, Any],
) -> None:
    """Write ``metrics.json``, ``results.md``, ``per_query.parquet``, a TREC run file a system and ``qrels.trec``.

    Args:
        rankings, values: system name -> its ranking, and metric -> ``(Q,)`` values.
        facts: what else ``metrics.json`` says: yields, temperatures, training.
    """
    import pyarrow
    from pyarrow import parquet

    metrics = {"systems": {row.system: asdict(row) for row in rows}} | dict(facts)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    (folder / "results.md").write_text(table.markdown(list(rows)))
    query_ids, passage_ids = list(query_ids), list(passage_ids)  # a column reads its file at every access
    names = list(rows[0].means)
    columns: dict[str, list] = {"system": [], "query": [], **{metric: [] for metric in names}}
    for name, of_system in values.items():
        rows_ = np.flatnonzero(~np.isnan(of_system[names[0]]))
        columns["system"] += [name] * len(rows_)
        columns["query"] += [query_ids[row] for row in rows_]
        for metric in names:
            columns[metric] += of_system[metric][rows_].tolist()
        tag = evaluate.tag(name)
        evaluate.write_run(folder / f"{tag}.trec", rankings[name], query_ids, passage_ids, tag)
    evaluate.write_qrels(folder / "qrels.trec", qrels, query_ids, passage_ids)
    parquet.write_table(pyarrow.table(columns), folder / "per_query.parquet")


def yields(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """``claim: 154 generated > 121 cleaned > 50 drawn > 48 retriever filter > …``, a line a query type,
    and what cleaning dropped."""
    lines = []
    for name, steps in counts.items():
        chain = " > ".join(f"{n} {step}" for step, n in steps.items() if step != "dropped")
        dropped = ", ".join(f"{n} {reason}" for reason, n in steps.get("dropped", {}).items())
        lines.append(f"  {name}: {chain}" + f" (dropped: {dropped})" * bool(dropped))
    return "\n".join(lines)


def difficulty(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """``claim: 50 queries, 0.97 first by BM25, 0.93 first by the student, 0.81 of their words in the passage``, ..."""
    return "\n".join(
        f"  {name}: {of['queries']} queries, {of['first by BM25']:.2f} first by BM25, "
        f"{of['first by the student']:.2f} first by the student, {of['words in common']:.2f} of their words in the "
        "passage"
        for name, of in profiles.items()
    )


def curve(points: Sequence[Point]) -> str:
    """``  600 queries of 86 passages: nDCG@10 0.812 on 118 dev queries, +0.010 [+0.002, +0.018]``, ..."""
    lines = []
    for point in points:
        had = (
            f"{point.queries:,} queries of {point.passages:,} passages"
            if point.queries
            else "untuned student"
        )
        gain = "" if point.gain is None else f", {point.gain:+.3f} [{point.low:+.3f}, {point.high:+.3f}]"
        lines.append(f"  {had}: {point.metric} {point.mean:.3f} on {point.dev} dev queries{gain}")
    return "\n".join(lines)


def passage_length(model: Path) -> int:
    """Tokens at which an exported model cuts passages."""
    return json.loads((model / "sentence_bert_config.json").read_text())["max_seq_length"]


def copy_model(trained: Path, folder: Path, card: str, query_length: int | None) -> None:
    """The model of the training stage in the run's folder, without a second copy on disk where that can be.

    Args:
        query_length: at which test queries were cut; None if they were not.

    It gets its name when all of it is there, its card included: a run whose ``model`` exists is finished.
    """

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(trained, partial, copy_function=link, ignore=shutil.ignore_patterns("README.md"))
    (partial / "README.md").write_text(card)
    if query_length is not None:
        (partial / "sentence_bert_config.json").unlink()  # a link: its other end stays as it is
        write_lengths(partial, query_length, passage_length(trained))
    written_through(partial)
    os.replace(partial, folder)


def model_card(
    settings: Mapping[str, Any],
    rows: Mapping[str, Sequence[table.SystemRow]],
    verdicts: Mapping[str, str],
    facts: Mapping[str, Any],
    curves: Mapping[str, Sequence[Point]],
) -> str:
    """README.md of the model: what it is, how it was made, how good it is, how it is used.

    Args:
        rows, verdicts: the results by corpus.
        curves: by corpus what was found out while a budget of queries was spent on it, if one was.
    """
    of_corpora = (f"{title}\n\n{table.markdown(list(of))}\n{verdicts[title]}\n" for title, of in rows.items())
    results = "\n".join(of_corpora).strip()
    for title, points in curves.items():
        had = curve(points).replace("  ", "- ")
        bought = " ".join(
            filter(None, ("On the dev queries, after each part of the budget of queries", title))
        )
        results += f"\n\n{bought}:\n\n{had}"
    student = settings["student"]
    tested = table.TESTED.get(settings["evaluation"]["split"], "Test queries of the corpus")

    def _named(group: str) -> str:
        """The choice, or where it was read from, if that is a user's own."""
        choice = facts["choices"][group]
        return settings[group]["path"] if choice in ("custom", "beir", "documents") else choice

    asked = settings["evaluation"]["query_length"]
    queries = "queries as long as the model can read" if asked is None else f"queries of up to {asked} tokens"
    prefixes = f"query prefix {student['query_prefix']!r}, passage prefix {student['passage_prefix']!r}"
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
---
# A dense retriever tuned by dense_retrieval

Base model: `{_named("student")}`. {student["pooling"]} pooling, normalised;
{queries}, passages of up to {facts["passage_length"]} tokens; {prefixes}.

Trained on `{_named("data")}` with {", ".join(settings["querytype"]["types"])} queries and the scores of
`{_named("teacher")}` by {_formula(facts["loss"]["terms"])}.

{tested}, differences and p-values (paired t-test) to the untuned student:

{results}

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("this folder")
similarity = model.similarity(model.encode_query(["a query"]), model.encode_document(["a passage"]))
```
"""


def _formula(terms: Mapping[str, Mapping[str, Any]]) -> str:
    """``1 x listwise (student_temperature 0.06, teacher_temperature 0.054) + 0.1 x infonce (temperature 0.01)``"""
    parts = []
    for name, term in terms.items():
        settings = [
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in term.items()
            if key != "weight"
        ]
        parts.append(f"{term['weight']:g} x {name}" + f" ({', '.join(settings)})" * bool(settings))
    return " + ".join(parts)
