"""The command as a user types it, on a tiny corpus with tiny models."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from omegaconf import OmegaConf
from pandas import read_csv
from scipy.stats import ttest_rel
from sentence_transformers import SentenceTransformer

from dense_retrieval.comparison.runs import read_all
from dense_retrieval.evaluation.verdict import verdict
from dense_retrieval.run import main
from dense_retrieval.search import results
from dense_retrieval.student.engine import PACKAGES


@pytest.fixture(scope="module")
def finished(project) -> Path:
    return project


def test_the_table_is_what_ir_measures_says_of_the_run_files(finished, corpus):
    metrics = json.loads((finished / "runs/first/metrics.json").read_text())["systems"]
    qrels = {
        q: {p: int(s)}
        for q, p, s in (line.split("\t") for line in (corpus / "qrels/test.tsv").read_text().splitlines()[1:])
    }
    for system, file in {
        "BM25": "BM25",
        "untuned student": "untuned_student",
        "tuned student": "tuned_student",
        "BM25 + untuned student": "BM25_untuned_student",
        "BM25 + tuned student": "BM25_tuned_student",
    }.items():
        ranking = list(ir_measures.read_trec_run(str(finished / f"runs/first/{file}.trec")))
        expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.RR @ 10], qrels, ranking)
        for measure, value in expected.items():
            assert metrics[system]["means"][str(measure)] == pytest.approx(value, abs=1e-9)
    left = {q.query_id: {} for q in ir_measures.read_trec_qrels(str(finished / "runs/first/qrels.trec"))}
    for judged in ir_measures.read_trec_qrels(str(finished / "runs/first/qrels.trec")):
        left[judged.query_id][judged.doc_id] = judged.relevance
    assert left == qrels
    assert metrics["untuned student"]["n"] == 10
    assert next(v for k, v in metrics.items() if k.startswith("teacher"))["n"] == 5


def test_the_hybrid_is_the_reciprocal_rank_fusion_of_the_two(finished):
    def ranked(file: str) -> dict[str, list[str]]:
        found: dict[str, list] = {}
        for scored in ir_measures.read_trec_run(str(finished / f"runs/first/{file}.trec")):
            found.setdefault(scored.query_id, []).append((-scored.score, scored.doc_id))
        return {query: [passage for _, passage in sorted(of)] for query, of in found.items()}

    words, student = ranked("BM25"), ranked("tuned_student")
    for query, passages in ranked("BM25_tuned_student").items():
        gains: dict[str, float] = {}
        for of in (words.get(query, []), student[query]):
            for rank, passage in enumerate(of, 1):
                gains[passage] = gains.get(passage, 0) + 1 / (60 + rank)
        assert [gains[p] for p in passages] == pytest.approx(
            sorted(gains.values(), reverse=True)[: len(passages)]
        )


def test_per_query_values_average_to_the_table(finished):
    table = parquet.read_table(finished / "runs/first/per_query.parquet").to_pandas()
    metrics = json.loads((finished / "runs/first/metrics.json").read_text())["systems"]
    for system, values in table.groupby("system"):
        assert values["nDCG@10"].mean() == pytest.approx(metrics[system]["means"]["nDCG@10"])


def test_the_comparison_says_what_the_run_says(finished):
    """The same means and differences; the t-test is scipy's of the per-query values."""
    arguments = [sys.executable, "-m", "dense_retrieval.compare", "runs/first", "--output", "compared"]
    subprocess.run(arguments, cwd=finished, check=True, capture_output=True)
    metrics = json.loads((finished / "runs/first/metrics.json").read_text())["systems"]
    table = read_csv(finished / "compared/comparison.csv")
    per_query = parquet.read_table(finished / "runs/first/per_query.parquet").to_pandas()
    assert set(table["system"]) == set(metrics) and set(table["corpus"]) == {"corpus0"}
    for _, line in table.iterrows():
        system = metrics[line["system"]]
        assert line["mean"] == pytest.approx(system["means"][line["metric"]])
        if line["system"] == "untuned student":
            continue
        assert line["difference"] == pytest.approx(system["differences"][line["metric"]]["mean"])
        pairs = per_query.pivot(index="query", columns="system", values=line["metric"])
        pairs = pairs[[line["system"], "untuned student"]].dropna()
        ours, untuned = pairs[line["system"]], pairs["untuned student"]
        expected = ttest_rel(ours, untuned).pvalue if (ours != untuned).any() else 1
        assert line["p_t"] == pytest.approx(expected)


def test_heldout_queries_are_measured_by_type(finished):
    """Each of the 4 held-out passages has a query of both types, which no training query came from."""
    metrics = json.loads((finished / "runs/first/metrics.json").read_text())
    for kind in ["claim", "question"]:
        rows = {row["system"]: row for row in metrics["heldout"][kind]}
        assert list(rows) == [
            "BM25",
            "untuned student",
            "BM25 + untuned student",
            "tuned student",
            "BM25 + tuned student",
        ]
        assert all(row["n"] == 4 for row in rows.values())
        difference = rows["tuned student"]["differences"]["nDCG@10"]["mean"]
        values = [rows[name]["means"]["nDCG@10"] for name in ("untuned student", "tuned student")]
        assert difference == pytest.approx(values[1] - values[0])
    assert metrics["yields"]["claim"]["generated"] == 36


def test_the_exported_model_gives_the_ranking(finished, corpus):
    """The model folder alone, in sentence-transformers, finds what the run file says."""
    model = SentenceTransformer(str(finished / "runs/first/model"), device="cpu")
    passages = [json.loads(line) for line in (corpus / "corpus.jsonl").read_text().splitlines()]
    queries = {
        q["_id"]: q["text"] for q in map(json.loads, (corpus / "queries.jsonl").read_text().splitlines())
    }
    embedded = model.encode_document([p["text"] for p in passages])
    top: dict[str, str] = {}
    scores: dict[str, float] = {}
    for scored in ir_measures.read_trec_run(str(finished / "runs/first/tuned_student.trec")):
        if scored.query_id not in top:
            top[scored.query_id], scores[scored.query_id] = scored.doc_id, scored.score
    for query, passage in top.items():
        similarity = model.encode_query([queries[query]]) @ embedded.T
        assert similarity.max() == pytest.approx(scores[query], abs=1e-5)
        assert passages[int(similarity.argmax())]["_id"] == passage
    card = (finished / "runs/first/model/README.md").read_text()
    assert "tuned student" in card and "sentence-transformers" in card


def test_the_run_says_what_made_it(finished):
    folder = finished / "runs/first"
    config = OmegaConf.load(folder / "config.yaml")
    assert config.groups.list_size == 4 and config.loss.infonce_weight == 0.1
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["yields"]["claim"]["train"] + facts["yields"]["claim"]["dev"] > 10
    assert 0.001 <= facts["loss"]["teacher_temperature"] <= 10
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_the_same_run_again_comes_from_the_cache(run, finished, command):
    log = run(finished, *command, "hydra.run.dir=runs/second").stdout
    assert "built in" not in log and "from the cache" in log
    first, second = (
        json.loads((finished / f"runs/{n}/metrics.json").read_text()) for n in ("first", "second")
    )
    assert first == second


def test_evaluating_differently_does_not_train_again(run, finished, command):
    log = run(finished, *command, "evaluation.headroom_queries=3", "hydra.run.dir=runs/third").stdout
    assert re.findall(r"(\w+): built in", log) == ["teacher_ranking"]


def test_another_pooling_is_another_student(run, finished, command):
    """Its candidates and what the teacher reranks are made anew."""
    kept = [c for c in command if not c.startswith("student.pooling")]
    log = run(finished, *kept, "student.pooling=cls", "hydra.run.dir=runs/pooling", "logger=none").stdout
    built = re.findall(r"(\w+): built in", log)
    assert {"candidates", "teacher_ranking", "groups", "training"} <= set(built) and "queries" not in built


def test_testing_on_other_heldout_queries_does_not_train_again(run, finished, command):
    without = [c for c in command if "heldout_types" not in c]
    log = run(finished, *without, "evaluation.heldout_types=[claim]", "hydra.run.dir=runs/fourth").stdout
    assert set(re.findall(r"(\w+): built in", log)) <= {
        "heldout_queries",
        "tokens",
        "embeddings",
        "ranking",
        "bm25",
        "hybrid",
    }


def test_another_split_is_tested_without_training_again(run, finished, command):
    log = run(finished, *command, "evaluation.split=train", "hydra.run.dir=runs/split").stdout
    assert "training" not in re.findall(r"(\w+): built in", log)
    table = parquet.read_table(finished / "runs/split/per_query.parquet").to_pandas()
    assert set(table["query"]) == {f"q{i}" for i in range(10, 20)}


def test_where_training_does_not_help_the_untuned_student_is_kept(run, finished, command):
    overrides = ["trainer.learning_rate=10", "trainer.max_epochs=1", "logger=none"]
    shown = run(finished, *command, *overrides, "hydra.run.dir=runs/worse").stdout
    metrics = json.loads((finished / "runs/worse/metrics.json").read_text())
    assert metrics["training"]["best_epoch"] == 0
    untuned, tuned = (metrics["systems"][name]["means"] for name in ("untuned student", "tuned student"))
    assert tuned == untuned
    dev = sum(steps["dev"] for steps in metrics["yields"].values())
    assert f"the tuned student is the untuned one. {dev} dev queries chose" in " ".join(shown.split())


def test_a_sweep_builds_each_upstream_artifact_once(run, finished, command):
    losses, types = ["infonce", "listwise", "combined"], ["claim", "question"]
    without = [c for c in command if not c.startswith("querytype=")]
    grid = [f"loss={','.join(losses)}", f"querytype={','.join(types)}"]
    run(finished, "-m", *without, *grid, "hydra.sweep.dir=runs/sweep", "trainer.max_epochs=1")
    jobs = sorted((finished / "runs/sweep").glob("*/metrics.json"))
    assert len(jobs) == 6
    log = "".join((job.parent / "run.log").read_text() for job in jobs)
    built = re.findall(r"(\w+): built in", log)
    assert built.count("training") == 6
    assert (
        built.count("scores") == built.count("candidates") == built.count("queries") == 1
    )  # claim was there
    assert not {"corpus", "bm25"} & set(built)


def test_an_ensemble_of_teachers_bm25_and_the_student(run, finished, command, cross_encoder_folder):
    """The pairs that the single teacher scored are not scored again; the mean is of normalised scores."""
    without = [c for c in command if not c.startswith("teacher")]
    member = f"'teacher=custom teacher.path={cross_encoder_folder} teacher.max_length=48'"
    members = ["teacher=ensemble", f"teacher.members=[{member}, bm25, student]", "teacher.weights=[2,1,1]"]
    log = run(finished, *without, *members, "hydra.run.dir=runs/ensemble").stdout
    facts, alone = (
        json.loads((finished / f"runs/{name}/metrics.json").read_text()) for name in ("ensemble", "first")
    )
    pairs = sum(steps["retriever filter"] for steps in alone["yields"].values()) * 4
    assert re.search(rf"teacher scores: {pairs} of {pairs} pairs are there", log)
    assert facts["systems"]["untuned student"] == alone["systems"]["untuned student"]
    scores = [
        np.load(finished / facts_["artifacts"]["scores"] / "scores.npz")["scores"]
        for facts_ in (facts, alone)
    ]
    there = np.isfinite(scores[0])
    assert scores[0][there].min() >= 0 and scores[0][there].max() <= 1
    assert (there == np.isfinite(scores[1])).all() and not np.allclose(scores[0][there], scores[1][there])


def test_a_mixture_trains_one_student_and_tests_it_on_each_corpus(run, finished, command, corpus, tmp_path):
    """Each corpus has the numbers of its own run before training; both have the same tuned student."""
    smaller = tmp_path / "smaller"
    shutil.copytree(corpus, smaller)
    lines = (smaller / "corpus.jsonl").read_text().splitlines()
    (smaller / "corpus.jsonl").write_text("\n".join(lines[:30]))
    synthetic = [json.loads(line) for line in (smaller / "synthetic.jsonl").read_text().splitlines()]
    kept = [json.dumps(q) for q in synthetic if int(q["passage_id"][1:]) < 30]
    (smaller / "synthetic.jsonl").write_text("\n".join(kept))
    shared = [c for c in command if not c.startswith(("data", "generator"))]
    members = ", ".join(
        f"'data=beir data.path={f} data.heldout=4 generator=files generator.path={f}/synthetic.jsonl'"
        for f in (corpus, smaller)
    )
    run(finished, *shared, "data=mixture", f"data.members=[{members}]", "hydra.run.dir=runs/mixture")
    folders = [finished / "runs/mixture" / name for name in ("0-beir", "1-beir")]
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    alone = json.loads((finished / "runs/first/metrics.json").read_text())
    for system in ("BM25", "untuned student"):
        assert first["systems"][system] == alone["systems"][system]
    assert first["systems"]["tuned student"] != alone["systems"]["tuned student"]
    assert first["training"] == second["training"] and first["yields"] == alone["yields"]
    batches = [-(-facts["yields"]["claim"]["train"] // 8) for facts in (first, second)]
    assert first["training"]["steps"] == first["training"]["epochs"] * sum(batches)
    assert (finished / "runs/mixture/model/model.safetensors").exists()
    generate = [sys.executable, "-m", "dense_retrieval.generate", *shared, "data=mixture"]
    generate += [f"data.members=[{members}]", "hydra.run.dir=runs/written"]
    subprocess.run(generate, check=True, cwd=finished, stdout=subprocess.DEVNULL)
    written = [
        len((finished / f"runs/written/{f.name}/queries.jsonl").read_text().splitlines()) for f in folders
    ]
    assert written == [2 * 2 * 40, 2 * 2 * 30]  # two types; a file has those of held-out passages too


class LanguageModelServer(ThreadingHTTPServer):
    """Answers with the passage's first words; falls silent after some answers."""

    daemon_threads = True

    def __init__(self, answers: int) -> None:
        super().__init__(("127.0.0.1", 0), LanguageModelHandler)
        self.left = answers
        self.answered: Counter[str] = Counter()
        self.silent, self.resumed = threading.Event(), threading.Event()

    def handle_error(self, *_: object) -> None:
        """The killed process does not take its answer."""


class LanguageModelHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        if not self.server.left:
            self.server.silent.set()
            self.server.resumed.wait()
        self.server.left -= 1
        self.server.answered[prompt] += 1
        words = prompt.split()[1:8]  # behind "Passage:"
        text = f"what is {' '.join(words)}?" if "question" in prompt else f"It holds {' '.join(words)}."
        message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        body = json.dumps(message).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_killed_generation_ends_with_the_same_queries(command, tmp_path):
    """12 passages, two types; killed after 9 answers, whose queries are not asked again."""
    server = LanguageModelServer(answers=9)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    overrides = [c for c in command if not c.startswith(("generator", "querytype", "evaluation"))]
    overrides += ["generator=openai", f"generator.url=http://127.0.0.1:{server.server_port}/v1"]
    overrides += ["generator.model=m", "generator.passages=12", "generator.concurrency=1"]
    overrides += ["querytype.types=[claim,question]"]
    arguments = [sys.executable, "-m", "dense_retrieval.generate", *overrides]
    quiet = {"cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen([*arguments, "hydra.run.dir=killed"], **quiet)
    assert server.silent.wait(60)
    killed.kill()
    killed.wait()
    server.left = 1000
    server.resumed.set()
    subprocess.run([*arguments, "hydra.run.dir=resumed"], check=True, **quiet)
    first = Counter(server.answered)
    assert len(first) == 24 and sum(first.values()) <= 24 + 2  # at most what was on its way
    subprocess.run([*arguments, "hydra.run.dir=whole", "cache_dir=another"], check=True, **quiet)
    assert sum((server.answered - first).values()) == 24
    server.shutdown()
    resumed, whole = ((tmp_path / name / "queries.jsonl").read_text() for name in ("resumed", "whole"))
    assert resumed == whole
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len(lines) == 24 and {line["querytype"] for line in lines} == {"claim", "question"}
    assert not any("dropped" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=nowhere"], "data.path=nowhere: there is no such folder"),
        (["generator.path=nowhere"], "generator.path=nowhere"),
        (["querytype=web"], "no queries of type 'web'.*claim, question"),
        (["loss=focal"], "focal"),
        (["evaluation.split=dev"], "evaluation.split=dev: this corpus has test, train"),
        (["evaluation.split=train", "querytype=human"], "test on what is trained on"),
        (["evaluation.heldout_types=[web]"], "evaluation.heldout_types=.*no such query"),
        (
            ["teacher=wikivital_minilm", "teacher.adapter=nowhere"],
            "teacher.adapter=nowhere: there is no such",
        ),
        (
            ["groups.scored_before=5", "teacher=ensemble", "teacher.members=[bm25,student]"],
            "a single teacher",
        ),
        (["student.path=no/where"], "student=all_minilm"),
        (["groups.list_size=41"], "groups.list_size"),
        (["trainer.batch_size=0"], "trainer.batch_size=0 is out of range; it is 1 or more"),
        (["device=gpu"], "device=gpu is unknown"),
        (["rounds_from=scratch"], "rounds_from=scratch is unknown; use untuned or tuned"),
        (["evaluation.metrics=[nDCG@1000]"], "evaluation.metrics"),
        (["student.matryoshka=[8,16]"], r"student.matryoshka=\[8,16\]: give dimensions from large to small"),
        (["evaluation.dimensions=[17]"], r"evaluation.dimensions=\[17\]: .* none above the student's 16"),
        (["evaluation.vectors=[int4]"], "evaluation.vectors: 'int4' is unknown; use float32, float16"),
        (["evaluation.query_length=500"], "500 tokens are more than the 64 positions of student.path"),
        (["data=mixture"], "data.members has no value"),
        (
            ["teacher=ensemble", "teacher.members=['teacher=foo',bm25]"],
            "teacher.members: 'teacher=foo': .*foo",
        ),
        (["loss.student_temperature=-1"], "loss.student_temperature"),
        (["data=fiqa", "data.zip=false"], "data.zip=true"),
        (["data=mixture", "data.members=['data=fiqa']"], "two corpora at least"),
        (
            ["data=mixture", "data.members=['data=fiqa', 'data=scifact']", "groups.scored_before=5"],
            "groups.scored_before=5 and data=mixture do not go together",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(finished, command, overrides, message, monkeypatch, capsys):
    """In this process: starting one takes longer than all else."""
    replaced = {o.split("=")[0] for o in overrides}
    if "data" in replaced:
        replaced |= {"data.path", "data.heldout"}
    if "teacher" in replaced:
        replaced |= {"teacher.path", "teacher.max_length"}
    kept = [c for c in command if c.split("=")[0] not in replaced]
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "logger=none", "hydra.run.dir=runs/bad"]
    monkeypatch.chdir(finished)
    monkeypatch.setattr(sys, "argv", ["run", *kept, *overrides, *quiet])
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        torch.set_flush_denormal(False)
    line = str(stopped.value.code)
    assert line.startswith("error: ") and "\n" not in line and re.search(message, line)
    assert "Traceback" not in capsys.readouterr().err


def test_documents_alone_are_tested_on_synthetic_queries(run, command, corpus, tmp_path):
    (tmp_path / "documents").mkdir()
    shutil.copy(corpus / "corpus.jsonl", tmp_path / "documents")
    own = [*command, "data.path=documents", "logger=none", "hydra.run.dir=run"]
    refused = run(tmp_path, *own, check=False)
    assert "error: evaluation.split=test: this corpus has synthetic_dev, synthetic; choose" in refused.stderr
    run(tmp_path, *own, "evaluation.split=synthetic_dev")
    facts = json.loads((tmp_path / "run/metrics.json").read_text())
    assert facts["split"] == "synthetic_dev" and facts["systems"]["tuned student"]["n"] > 0


def test_seeds_repeat_training_alone(run, command, finished):
    """The verdict is of all of them; a comparison takes them for as many runs."""
    made = {file.parent.name for file in (finished / "cache").glob("*/stage.json")}
    shown = run(finished, *command, "logger=none", "seeds=3", "hydra.run.dir=runs/seeds")
    new = [
        file.parent.name for file in (finished / "cache").glob("*/stage.json") if file.parent.name not in made
    ]
    assert {name.rpartition("-")[0] for name in new} == {"training", "embeddings", "ranking"}
    assert sum(name.startswith("training-") for name in new) == 2
    facts = json.loads((finished / "runs/seeds/metrics.json").read_text())
    values = (
        parquet.read_table(finished / "runs/seeds/per_query.parquet")
        .to_pandas()
        .pivot(index="query", columns="system", values="nDCG@10")
    )
    names = ["tuned student", "tuned student, seed 1", "tuned student, seed 2"]
    differences = (values[names].to_numpy() - values[["untuned student"]].to_numpy()).T
    expected = verdict(differences, "nDCG@10")
    assert facts["verdict"] == pytest.approx(asdict(expected))
    assert str(expected) in shown.stdout + shown.stderr
    runs, _ = read_all([finished / "runs/seeds"])
    assert [run.seed for run in runs] == [0, 1, 2]
    for run_, name in zip(runs, names, strict=True):
        assert run_.systems["tuned student"]["nDCG@10"].to_dict() == values[name].to_dict()
    assert "tuned student, seed 1" not in runs[0].systems and "BM25" in runs[1].systems


def test_a_folder_of_files_is_enough(run, command, corpus, tmp_path):
    """Its passages are the files' parts; it is tested on the queries of those that are held out."""
    (tmp_path / "docs").mkdir()
    for record in map(json.loads, (corpus / "corpus.jsonl").read_text().splitlines()):
        (tmp_path / f"docs/{record['_id']}.txt").write_text(record["text"])
    written = [json.loads(line) for line in (corpus / "synthetic.jsonl").read_text().splitlines()]
    lines = [json.dumps(query | {"passage_id": f"{query['passage_id']}.txt#1"}) for query in written]
    (tmp_path / "queries.jsonl").write_text("\n".join(lines))
    own = [
        o for o in command if not o.startswith(("data=", "data.path", "generator.path", "evaluation.heldout"))
    ]
    shown = run(
        tmp_path,
        *own,
        "data=documents",
        "data.path=docs",
        "generator.path=queries.jsonl",
        "querytype.difficulty=0.5",
        "logger=none",
        "hydra.run.dir=run",
    )
    facts = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (
        facts["split"] == "synthetic" and facts["systems"]["tuned student"]["n"] == 4
    )  # one of each passage
    assert facts["heldout"]["claim"][0]["n"] == 4
    assert (facts["yields"]["claim"]["cleaned"], facts["yields"]["claim"]["hard"]) == (36, 18)
    assert facts["difficulty"]["test queries"]["queries"] == 4
    assert facts["difficulty"]["claim"]["queries"] == facts["yields"]["claim"]["drawn"]
    said = "Synthetic queries of held-out passages, which a language model wrote"
    assert said in " ".join(shown.stdout.split()) and said in (tmp_path / "run/model/README.md").read_text()
    judged = dict(line.split(" ")[::2] for line in (tmp_path / "run/qrels.trec").read_text().splitlines())
    assert all(query.startswith(passage) and passage.endswith(".txt#1") for query, passage in judged.items())


def test_it_runs_from_a_wheel_outside_the_checkout(tmp_path):
    """conf/, the corpus and the teacher travel inside the wheel."""
    project = Path(__file__).parents[2]
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path / "dist", str(project)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "site"], check=True)
    process = subprocess.run(
        [sys.executable, "-m", "dense_retrieval.run", "--cfg", "job", "--resolve"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert process.returncode == 0, process.stderr
    config = OmegaConf.create(process.stdout)
    for path in (config.data.queries, config.teacher.adapter):
        assert Path(path).is_relative_to(tmp_path / "site") and Path(path).exists()


def test_a_typed_query_finds_what_the_run_found(finished, corpus, monkeypatch):
    """By three systems; a model folder searches as its run does."""
    monkeypatch.chdir(finished)
    lines = (corpus / "queries.jsonl").read_text().splitlines()[:2]
    asked = [json.loads(line) for line in lines]
    texts = {p["_id"]: p["text"] for p in map(json.loads, (corpus / "corpus.jsonl").read_text().splitlines())}
    own = (finished / "runs/first/.hydra/overrides.yaml").read_text()
    overrides = [line.removeprefix("- ").strip("'") for line in own.splitlines()]
    embedded = {*Path("cache").glob("embeddings-*")}
    by_run = list(results(Path("runs/first"), [], iter(q["text"] for q in asked), 3))
    assert {*Path("cache").glob("embeddings-*")} == embedded  # those of the run
    by_model = list(results(Path("runs/first/model"), overrides, iter(q["text"] for q in asked), 3))
    for system, file in {
        "BM25": "BM25",
        "untuned student": "untuned_student",
        "tuned student": "tuned_student",
    }.items():
        ranked: dict[str, list] = {}
        for scored in ir_measures.read_trec_run(f"runs/first/{file}.trec"):
            ranked.setdefault(scored.query_id, []).append((scored.score, scored.doc_id))
        for query, (text, found), (_, again) in zip(asked, by_run, by_model, strict=True):
            assert text == query["text"]
            best = sorted(ranked[query["_id"]], key=lambda pair: -pair[0])[:3]
            for one in (found[system], again[system]):
                assert [hit.id for hit in one] == [passage for _, passage in best]
                assert [hit.score for hit in one] == pytest.approx([s for s, _ in best], abs=1e-5)
                assert all(hit.text.endswith(texts[hit.id]) for hit in one)


def test_searching_from_the_shell(finished):
    def searched(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dense_retrieval.search", *arguments]
        return subprocess.run(command, cwd=finished, input="cell star\n\n", capture_output=True, text=True)

    shown = searched("runs/first", "--top", "2")
    assert shown.returncode == 0 and all(word in shown.stdout for word in ("BM25", "untuned", "cell star"))
    missing = searched("runs/nowhere")
    assert missing.returncode == 1 and missing.stderr == "error: runs/nowhere: there is no such folder\n"
    unknown = searched("runs/first", "retriever=splade")
    assert unknown.returncode == 1 and unknown.stderr.startswith("error: ") and "splade" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_second_round_finds_new_candidates_and_scores_only_what_is_new(run, finished, command):
    """By the student of the first round; the first round's candidates are scored already."""
    own = [*command, "groups.dev_fraction=0", "trainer.learning_rate=1e-2", "logger=none", "cache_dir=rounds"]
    log = run(finished, *own, "rounds=2", "hydra.run.dir=runs/rounds").stdout
    built = re.findall(r"(\w+): built in", log)
    assert built.count("training") == built.count("groups") == built.count("candidates") == 2
    facts, first = (
        json.loads((finished / f"runs/{name}/metrics.json").read_text()) for name in ("rounds", "first")
    )
    pairs, known = (
        np.load(finished / of["artifacts"]["candidates"] / "candidates.npz")["passages"]
        for of in (facts, first)
    )
    new = sum(len(np.setdiff1d(row, before)) for row, before in zip(pairs, known, strict=True))
    scores = json.loads((finished / facts["artifacts"]["scores"] / "stage.json").read_text())
    assert scores["counts"]["scored"] == new > 0
    refused = run(finished, *command, "rounds=2", "retriever=bm25", "hydra.run.dir=runs/bad", check=False)
    assert refused.stderr.splitlines()[-1].startswith("error: rounds=2 needs a student that searches")


def test_a_plan_says_what_the_run_then_builds(run, finished, command):
    """Of a run, and of a sweep each stage once; neither leaves a folder."""
    own = [*command, "loss=listwise", "querytype=question", "logger=none"]
    shown = run(finished, *own, "plan=true", "hydra.run.dir=runs/planned").stdout
    assert not (finished / "runs/planned").exists()
    planned = re.findall(r"│ (\w+) +│ to build", shown)
    log = run(finished, *own, "hydra.run.dir=runs/planned").stdout
    assert sorted(planned) == sorted(re.findall(r"(\w+): built in", log)) and "training" in planned
    assert "nothing to build" in run(finished, *own, "plan=true", "hydra.run.dir=runs/again").stdout
    sweep = [*command, "logger=none", "loss=infonce,ranknet", "plan=true", "hydra.sweep.dir=runs/sweep_plan"]
    shown = run(finished, "-m", *sweep).stdout
    assert (
        len(re.findall(r"│ training +│ to build", shown)) == 2 and len(re.findall("│ scores +│", shown)) == 1
    )
    assert not (finished / "runs/sweep_plan").exists()


@pytest.mark.parametrize("engine", ["openvino", "openvino_int8"])
def test_another_engine_says_what_it_costs(engine, finished, run, command):
    for package in PACKAGES[engine]:
        pytest.importorskip(package)
    process = run(finished, *command, f"student.engine={engine}", f"hydra.run.dir=runs/{engine}")
    said = json.loads((finished / f"runs/{engine}/metrics.json").read_text())
    cost, untuned = said["engine"], said["systems"]["untuned student"]["means"]["nDCG@10"]
    usual = json.loads((finished / "runs/first/metrics.json").read_text())
    assert usual["engine"] is None
    assert cost["nDCG@10"] == {
        "torch": usual["systems"]["untuned student"]["means"]["nDCG@10"],
        engine: untuned,
    }
    for cosines in cost["cosines"].values():
        assert 1.001 > cosines["min"] > (0.98 if "int8" in engine else 0.999999)
    assert f"{engine} against torch: cosine of query" in process.stderr + process.stdout
    assert said["used"] != usual["used"]
