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
from dense_retrieval.files import link, written_through
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
        facts: what else ``metrics.json`` says: yields, temperatures, training, what of the student was tuned.
    """
    import pyarrow
    from pyarrow import parquet

    metrics = {"systems": {row.system: asdict(row) for row in rows}} | dict(facts)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
    note = f"\n{table.QUERIES_ALONE}.\n" if facts.get("tune") == "queries" else ""
    (folder / "results.md").write_text(table.markdown(list(rows)) + note)
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
    """How many queries are left after each step, a line a query type, and what cleaning dropped."""
    steps = list(dict.fromkeys(step for of in counts.values() for step in of if step != "dropped"))
    lines = {name: [str(of.get(step, "")) for step in steps] for name, of in counts.items()}
    dropped: dict[str, int] = {}
    for of in counts.values():
        for reason, n in of.get("dropped", {}).items():
            dropped[reason] = dropped.get(reason, 0) + n
    most_first = sorted(dropped.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{n} {reason}" for reason, n in most_first)
    return _aligned(steps, lines) + f"\ncleaning dropped {reasons}" * bool(reasons)


def difficulty(profiles: Mapping[str, Mapping[str, float]]) -> str:
    """Of the queries of each type the share that BM25 and the student rank first, and of their words the share that
    stands in the passage."""
    measures = list(dict.fromkeys(measure for of in profiles.values() for measure in of))
    lines = {
        name: [f"{of[m]:.2f}" if isinstance(of[m], float) else f"{of[m]:,}" for m in measures]
        for name, of in profiles.items()
    }
    return _aligned(measures, lines)


def _aligned(header: Sequence[str], lines: Mapping[str, Sequence[str]]) -> str:
    """Right-aligned columns under headers of two lines, each line with its name in front."""
    above, under = zip(*map(_halves, header), strict=True)
    table = {" ": above, "query type": under, **lines}
    widths = [max(len(of[column]) for of in table.values()) for column in range(len(header))]
    first = max(map(len, table))
    rows = (
        [f"{name:{first}}", *(f"{cell:>{width}}" for cell, width in zip(of, widths, strict=True))]
        for name, of in table.items()
    )
    return "\n".join(" ".join(row).rstrip() for row in rows)


def _halves(name: str) -> tuple[str, str]:
    """Cut at the space nearest to the middle; without one all is below."""
    spaces = [position for position, c in enumerate(name) if c == " "]
    cut = min(spaces, key=lambda position: abs(2 * position - len(name)), default=-1)
    return name[: max(cut, 0)], name[cut + 1 :]


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


def formula(terms: Mapping[str, Mapping[str, Any]]) -> str:
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
