"""Folders of finished runs, as far as a comparison reads them."""

import json
from collections.abc import Sequence

import numpy as np
import pandas
import yaml
from datasets import Dataset

from dense_retrieval.records import PASSAGES, QUERIES, Corpus, Qrels, features

METRICS = ("nDCG@10", "R@100", "RR@10", "AP@100")


def write_run(
    folder,
    settings: dict,
    values: dict[str, np.ndarray],
    corpus: str = "kale",
    ids: str = "q",
    metrics: Sequence[str] = METRICS,
    **facts,
) -> None:
    """A run folder of what a comparison reads; ``values`` are of each metric, by system, of q0, q1, ..."""
    choices = {"data": corpus} | {k: v for k, v in settings.items() if k in ("loss", "querytype", "student")}
    config: dict = {
        "seed": 0,
        "data": {"name": corpus},
        "cache_dir": str(folder),
        "logger": {"enabled": False},
    }
    for name, value in settings.items():
        if name not in choices:
            group, _, key = name.rpartition(".")
            (config.setdefault(group, {}) if group else config)[key] = value
    (folder / ".hydra").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    known = {"systems": {}, "corpus": corpus, "split": "test", "choices": choices}
    (folder / "metrics.json").write_text(json.dumps(known | facts))
    tables = []
    for system, of in values.items():
        table = pandas.DataFrame({"system": system, "query": [f"{ids}{i}" for i in range(len(of))]})
        tables.append(table.assign(**dict.fromkeys(metrics, of)).dropna())
    pandas.concat(tables).to_parquet(folder / "per_query.parquet", index=False)


def with_facts(folder) -> None:
    """Two systems, with all that the page can show."""
    values = np.random.default_rng(0).random((3, 12))
    queries = [f"q{i}" for i in range(12)]
    passages = {"id": ["p0", "p1"], "title": ["", ""], "text": ["kale & <b>cabbage</b>", "basalt"]}
    asked = {"id": queries, "text": [f"what is {q}?" for q in queries]}
    asked |= {"querytype": ["human"] * 12, "source": [0] * 12}
    judged = Qrels(np.arange(12), np.zeros(12, np.int64), np.ones(12, np.int64))
    tables_ = (
        Dataset.from_dict(passages, features(PASSAGES)),
        {"test": Dataset.from_dict(asked, features(QUERIES))},
    )
    (folder / "cache").mkdir()
    Corpus(*tables_, {"test": judged}, np.array([1])).save(folder / "cache")
    for number, loss in enumerate(["infonce", "listwise"]):
        run = folder / loss
        heldout = {"claim": [{"system": "tuned student", "means": {"nDCG@10": 0.25 + number / 2}}]}
        yields = {"claim": {"generated": 77, "cleaned": 66, "dropped": {"copied": 11}, "train": 55}}
        systems = {"untuned student": values[2], "tuned student": values[number]}
        facts = {"artifacts": {"corpus": str(folder / "cache")}, "heldout": heldout, "yields": yields}
        facts |= {"curve": [[0, 2.0], [1, 1.0]], "training": {"dev": [{"loss": 0.5}, {"loss": 0.25}]}}
        facts |= {"command": f"python -m dense_retrieval.run loss={loss}", "commit": "0123456789abcdef"}
        write_run(run, {"loss": loss}, systems, **facts)
        for system, order in {"untuned_student": [1, 0], "tuned_student": [0, 1]}.items():
            lines = [f"{q} Q0 p{p} {r} 0 t" for q in queries for r, p in enumerate(order)]
            (run / f"{system}.trec").write_text("\n".join(lines))
