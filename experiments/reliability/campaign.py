"""Kills at random moments of a small real run, and damage to each file of its cache.

    python experiments/reliability/campaign.py FOLDER [KILLS]

Leaves its corpus, caches and runs in FOLDER, and prints the tables of README.md.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.corpus.embedded import wikiscience
from dense_retrieval.records import InputError
from dense_retrieval.store import Store

SETTINGS = [
    "data=beir",
    "data.path=corpus",
    "data.heldout=5",
    "generator=files",
    "generator.path=corpus/synthetic.jsonl",
    "querytype.types=[claim,question]",
    "querytype.total=24",
    "teacher=wikivital_minilm",
    "student.passage_length=32",
    "groups.list_size=4",
    "groups.teacher_top1=false",
    "trainer.batch_size=8",
    "trainer.max_epochs=1",
    "evaluation.headroom_queries=5",
    "logger=none",
]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def write_corpus(folder: Path, n: int = 100) -> None:
    """The first wikiscience articles that have shipped queries, in BEIR's layout; descriptions test."""
    corpus = wikiscience()
    shipped = Path(sys.modules[wikiscience.__module__].__file__).parent / "wikivital" / "queries.jsonl"
    written = [json.loads(line) for line in shipped.read_text().splitlines()]
    chosen = list(dict.fromkeys(query["passage_id"] for query in written))[:n]
    rows = {id: row for row, id in enumerate(corpus.passages["id"])}
    passages = [{"_id": i, "title": "", "text": corpus.passages[rows[i]]["text"]} for i in chosen]
    tested = corpus.queries["test"]
    asked = [q for q in tested if corpus.passages[q["source"]]["id"] in chosen]
    (folder / "qrels").mkdir(parents=True)
    for name, lines in {
        "corpus": passages,
        "queries": [{"_id": q["id"], "text": q["text"]} for q in asked],
        "synthetic": [query for query in written if query["passage_id"] in chosen],
    }.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    judged = [f"{q['id']}\t{corpus.passages[q['source']]['id']}\t1" for q in asked]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))


def start(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "dense_retrieval.run", *SETTINGS, f"cache_dir=cache-{name}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, f"hydra.run.dir=run-{name}"], cwd=folder, **quiet)


def result(run: Path) -> dict[str, str]:
    """What a run says, and the content of what it leaves."""
    found = {"systems": json.dumps(json.loads((run / "metrics.json").read_text())["systems"])}
    for file in [*run.glob("*.trec"), run / "per_query.parquet", run / "model" / "model.safetensors"]:
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def kill(folder: Path, kills: int) -> None:
    """Kill and start again until a run ends, then with an empty cache; as often as asked for."""
    begun = time.monotonic()
    assert start(folder, "whole").wait() == 0
    seconds = time.monotonic() - begun
    expected = result(folder / "run-whole")
    random.seed(0)
    codes: Counter[tuple[str, int]] = Counter()
    outcomes: Counter[str] = Counter()
    done, number = 0, 0
    while done < kills:
        number += 1
        name = f"{number}"
        while True:
            process = start(folder, name)
            which = SIGNALS[done % len(SIGNALS)]
            try:
                process.wait(random.uniform(2, seconds) if done < kills else None)
                said = process.stderr.read()
                traceback = "Traceback" in said
                outcomes["ended without a kill: traceback" if traceback else "ended without a kill"] += 1
                break
            except subprocess.TimeoutExpired:
                process.send_signal(which)
                codes[which.name, process.wait()] += 1
                done += 1
        same = process.returncode == 0 and result(folder / f"run-{name}") == expected
        outcomes["result of the whole run" if same else "ANOTHER RESULT"] += 1
        shutil.rmtree(folder / f"cache-{name}")
    print(f"\n{done} kills in {number} runs; the whole run takes {seconds:.0f} s\n")
    print("| signal | exit status | times |\n| --- | ---: | ---: |")
    for (name, code), times in sorted(codes.items()):
        print(f"| {name} | {code} | {times} |")
    print("\n" + "\n".join(f"- {outcome}: {times}" for outcome, times in sorted(outcomes.items())))


HARM: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "a bit flipped": lambda content: (
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
        if content
        else b"x"
    ),
    "emptied": lambda content: b"" if content else b"x",
}


def damage(folder: Path) -> None:
    """Each file of the finished cache in turn; what a store then builds, against what was there."""
    pristine, cache = folder / "cache-whole", folder / "cache-damaged"
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[*SETTINGS, f"cache_dir={cache}"])
    steps = describe(config, lambda *_: None).steps
    records = {f.parent.name: json.loads(f.read_text())["outputs"] for f in pristine.glob("*/stage.json")}
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dense_retrieval").addHandler(handler)
    outcomes: dict[str, Counter[str]] = {}
    shutil.copytree(pristine, cache)
    for key, outputs in records.items():
        for name in [*outputs, "stage.json"]:
            for harm in [*HARM, "deleted"]:
                heard.clear()
                file = cache / key / name
                content = file.read_bytes()
                file.unlink()
                if harm != "deleted":
                    file.write_bytes(HARM[harm](content))
                try:
                    Store(cache).build(*steps)
                except InputError as error:
                    heard.append(str(error))
                said = any(key in line for line in heard)
                kept = False
                if said and (cache / key / "stage.json").exists():
                    again = json.loads((cache / key / "stage.json").read_text())["outputs"]
                    kept = {n: of["sha256"] for n, of in again.items()} == {
                        n: of["sha256"] for n, of in outputs.items()
                    }
                outcome = (
                    "named and built again, the same"
                    if said and kept
                    else "not needed"
                    if not said
                    else "OTHER"
                )
                outcomes.setdefault(harm, Counter())[outcome] += 1
                shutil.rmtree(cache / key, ignore_errors=True)
                shutil.copytree(pristine / key, cache / key)
    kinds = sorted({outcome for of in outcomes.values() for outcome in of})
    print("\n| each file | " + " | ".join(kinds) + " |\n| --- |" + " ---: |" * len(kinds))
    for harm, of in outcomes.items():
        print(f"| {harm} | " + " | ".join(str(of[kind]) for kind in kinds) + " |")


def main() -> None:
    folder, kills = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    folder.mkdir(parents=True)
    write_corpus(folder / "corpus")
    kill(folder, kills)
    os.chdir(folder)
    torch.set_flush_denormal(True)  # as the command does
    damage(folder)


if __name__ == "__main__":
    main()
