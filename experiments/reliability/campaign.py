"""Kills at random moments of a small real run, and damage to each file of its cache.

    python experiments/reliability/campaign.py FOLDER [KILLS]   # 60; with 0 the damage alone

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from hydra import compose, initialize_config_dir

from dense_retrieval import store
from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.corpus import embedded
from dense_retrieval.files import sha256
from dense_retrieval.records import InputError
from dense_retrieval.stage import Step

SETTINGS = """data=beir data.path=corpus data.heldout=5 generator=files generator.path=corpus/synthetic.jsonl
    querytype.types=[claim,question] querytype.total=16 teacher=wikivital_minilm student.passage_length=32
    groups.list_size=4 groups.teacher_top1=false groups.dev_fraction=0 trainer.batch_size=8 trainer.max_epochs=2
    evaluation.headroom_queries=5 logger=none"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LANES = 2  # runs at once, each with a cache of its own
HARMS = ("truncated", "bit flipped", "bit flipped, time kept", "emptied", "deleted")


def write_corpus(folder: Path, n: int = 60) -> None:
    """The first wikiscience articles that have shipped queries, in BEIR's layout; people's descriptions test."""
    science = embedded.wikiscience()
    shipped = Path(embedded.__file__).parent / "wikivital" / "queries.jsonl"
    written = [json.loads(line) for line in shipped.read_text().splitlines()]
    ids = list(science.passages["id"])
    kept = set(list(dict.fromkeys(query["passage_id"] for query in written))[:n])
    asked = [q for q in science.queries["test"] if ids[q["source"]] in kept]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in {
        "corpus": [{"_id": p["id"], "text": p["text"]} for p in science.passages if p["id"] in kept],
        "queries": [{"_id": q["id"], "text": q["text"]} for q in asked],
        "synthetic": [query for query in written if query["passage_id"] in kept],
    }.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judged = [f"{q['id']}\t{ids[q['source']]}\t1" for q in asked]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dense_retrieval.run", *SETTINGS.split(), f"cache_dir=cache-{name}"]
    how: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    how["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, f"hydra.run.dir=run-{name}"], **how)


def result(run: Path) -> dict[str, Any]:
    """What a run says and leaves."""
    found: dict[str, Any] = {"systems": json.loads((run / "metrics.json").read_text())["systems"]}
    found["per query"] = pyarrow.parquet.read_table(run / "per_query.parquet").to_pydict()
    for file in [*run.glob("*.trec"), run / "model" / "model.safetensors"]:
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def kill(folder: Path, lane: int, kills: int, seconds: float, expected: dict[str, Any]) -> Counter[str]:
    """Kill and start again until a run ends, then from an empty cache, as often as asked for."""
    moments, counted, done = random.Random(lane), Counter[str](), 0
    while done < kills:
        name = f"{lane}-{counted['runs']}"
        while True:
            process = start(folder, name)
            try:
                said = process.communicate(timeout=moments.uniform(0, seconds) if done < kills else None)[1]
                break
            except subprocess.TimeoutExpired:
                which = SIGNALS[done % len(SIGNALS)]
                process.send_signal(which)
                said = process.communicate()[1]
                stacked = " with a traceback" if "Traceback" in said else ""
                counted[f"{which.name}: exit status {process.returncode}{stacked}"] += 1
                done += 1
        same = process.returncode == 0 and result(folder / f"run-{name}") == expected
        counted["runs"] += 1
        counted["runs with the reference's result" if same else f"OTHER RESULT: {said[-300:]}"] += 1
        shutil.rmtree(folder / f"cache-{name}")
    return counted


def all_steps(steps: list[Step[Any]]) -> dict[str, Step[Any]]:
    """By key, what is read before what reads it."""
    return {of.key: of for step in steps for of in [*all_steps(step.inputs).values(), step]}


def harmed(file: Path, harm: str) -> bool:
    """Harm a file, under an inode of its own; False where there is nothing to harm."""
    content, stat = file.read_bytes(), file.stat()
    if not content and harm != "deleted":
        return False
    file.unlink()
    half = len(content) // 2
    flipped = content[:half] + bytes(byte ^ 1 for byte in content[half : half + 1]) + content[half + 1 :]
    if harm != "deleted":
        file.write_bytes({"truncated": content[:half], "emptied": b""}.get(harm, flipped))
    if harm.endswith("time kept"):
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        sha256.cache_clear()  # a process keeps hashes by time
    return True


def outcome(cache: Path, steps: dict[str, Step[Any]], before: dict[str, Any], said: list[str]) -> str:
    """What building says, and whether each file of the cache is then what it was."""
    said.clear()
    try:
        store.Store(cache).build(*steps.values())
    except (InputError, SystemExit) as error:
        return f"error: {error}"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}"
    if any(store.damage(cache / key, everything=True) for key in steps):
        return "not noticed, `cache verify` names it" if not said else "OTHER: damage is left"
    if other := [key for key in steps if outputs(cache / key) != before[key]]:
        return f"OTHER RESULT in {', '.join(other)}"
    return f"lines of warning: {len(said)}; built again, the same bytes"


def outputs(artifact: Path) -> dict[str, str]:
    found = json.loads((artifact / "stage.json").read_text())["outputs"]
    return {name: state["sha256"] for name, state in found.items()}


def damage(folder: Path) -> None:
    """Each file of the reference's cache in turn; a memo together with what was made from it."""
    pristine, cache = folder / "cache-reference", folder / "cache-damaged"
    shutil.copytree(pristine, cache)
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[*SETTINGS.split(), f"cache_dir={cache}"])
    steps = all_steps(describe(config, lambda *_: None).steps)
    before = {key: outputs(pristine / key) for key in steps}
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dense_retrieval").addHandler(handler)
    files = [Path(key, name) for key in steps for name in [*before[key], "stage.json"]]
    memos = [file.relative_to(pristine) for file in pristine.glob("*.sqlite")]
    scored = [Path(key) for key in steps if steps[key].stage.name in ("scores", "teacher_ranking")]
    for kind, names in (("file of an artifact", files), ("memo", memos)):
        print(f"\n| {kind} | outcome | times |\n| --- | --- | ---: |")
        for harm in HARMS:
            counted = Counter[str]()
            for name in names:
                restored = [Path(name.parts[0])] if kind != "memo" else [*scored, *memos]
                for key in scored if kind == "memo" else []:
                    shutil.rmtree(cache / key)
                if harmed(cache / name, harm):
                    counted[outcome(cache, steps, before, said)] += 1
                for part in restored:
                    shutil.rmtree(cache / part, ignore_errors=True)
                    copy = shutil.copytree if (pristine / part).is_dir() else shutil.copy2
                    copy(pristine / part, cache / part)
                if harm.endswith("time kept"):
                    sha256.cache_clear()
            print("\n".join(f"| {harm} | {what} | {n} |" for what, n in sorted(counted.items())), flush=True)


def main() -> None:
    folder, kills = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 60
    write_corpus(folder / "corpus")
    begun = time.monotonic()
    if start(folder, "reference").wait():
        sys.exit("the reference run fails")
    seconds, expected = time.monotonic() - begun, result(folder / "run-reference")
    best = json.loads((folder / "run-reference" / "metrics.json").read_text())["training"]["best_epoch"]
    print(f"The reference run takes {seconds:.0f} s; its best epoch is {best}.", flush=True)
    with ThreadPoolExecutor(LANES) as pool:
        lanes = [pool.submit(kill, folder, i, kills // LANES, seconds, expected) for i in range(LANES)]
        counted = sum((lane.result() for lane in lanes), Counter[str]())
    print("\n| kills, and the runs that they ended in | times |\n| --- | ---: |")
    print("\n".join(f"| {what} | {times} |" for what, times in sorted(counted.items())), flush=True)
    os.chdir(folder)
    torch.set_flush_denormal(True)  # as the command does
    torch.set_num_threads(1)
    damage(folder)


if __name__ == "__main__":
    main()
