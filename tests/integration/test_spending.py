"""A budget of queries spent on the tiny corpus: on which passages, until when, and never twice."""

import json
import math
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval.budget import found_out, known, never, prepared
from dense_retrieval.chain import describe
from dense_retrieval.config import CONF
from dense_retrieval.plan import lines
from dense_retrieval.prepare import prepare
from dense_retrieval.records import InputError
from dense_retrieval.stage import reachable
from dense_retrieval.store import Store
from dense_retrieval.training.train import train

BUDGET = ["generator.budget=27", "generator.parts=3", "groups.dev_fraction=0.2", "logger=none"]


def composed(overrides):
    with initialize_config_dir(CONF, version_base=None):
        return compose("config", overrides=overrides)


def described(config, ended=never):
    return describe(config, lambda *_: None, ended)


@pytest.fixture(scope="module")
def spent(command, tmp_path_factory):
    """A store in which all parts of a budget are built, its configuration, and its steps."""
    config = composed([*command, *BUDGET, f"cache_dir={tmp_path_factory.mktemp('cache')}"])
    store = Store(Path(config.cache_dir))
    part = prepared(config, never)
    store.build(*part.spent.curve, part.queries)
    return config, store, part


def asked_steps(part):
    steps = reachable([part.queries]).values()
    return [step for step in steps if step.stage.name == "asked_passages"]


def test_the_passages_asked_next_are_those_of_most_disagreement(spent):
    _, store, part = spent
    steps = asked_steps(part)
    asked = [store.load(step).rows.tolist() for step in steps]
    assert [len(rows) for rows in asked] == [9, 18, 27]
    for step, (before, rows) in zip(steps[1:], pairwise(asked), strict=True):
        reads = step.arguments["disagreement"].arguments
        store.build(*reads.values())
        loaded = {name: store.load(of) for name, of in reads.items()}
        teacher = np.load(store.open(reads["groups"]).path / "normalised.npy")
        apart: dict[int, list[float]] = {}
        for query, passages in enumerate(loaded["candidates"].passages):
            listed = [k for k, row in enumerate(passages) if row >= 0]
            cosines = loaded["passage_embeddings"][passages[listed]] @ loaded["query_embeddings"][query]
            taus = (loaded["temperatures"][f"{of}_temperature"] for of in ("teacher", "student"))
            raised = [
                np.exp(np.float64(of) / tau)
                for of, tau in zip((teacher[query][listed], cosines), taus, strict=True)
            ]
            ours, theirs = (of / of.sum() for of in raised)
            for k, difference in zip(listed, np.abs(ours - theirs), strict=True):
                apart.setdefault(int(passages[k]), []).append(difference)
        untrained = np.concatenate([store.load(of) for of in step.arguments["untrained"].values()])
        waiting = {row for row in range(40) if row not in untrained and row not in before}
        best = sorted(waiting & apart.keys(), key=lambda row: -np.mean(apart[row]))[:9]
        assert set(before) < set(rows) and set(rows) - set(before) >= set(best)


def test_the_dev_queries_are_those_of_the_first_part(spent):
    _, store, part = spent
    dev = {query["source"] for query in store.load(part.spent.dev).queries}
    first = store.load(part.spent.dev.arguments["queries"])
    assert len(store.load(part.spent.dev).queries) == sum(source in dev for source in first["source"])
    store.build(part.spent.labels.groups)
    groups = store.load(part.spent.labels.groups)
    assert dev and set(groups.source[groups.dev]) <= set(store.load(asked_steps(part)[0]).rows)
    assert dev >= set(groups.source[groups.dev]) and len(groups.query) > 18
    points = [store.load(point) for point in part.spent.curve]
    assert [point.queries for point in points] == [0, 9, 18, 27] and len({point.dev for point in points}) == 1
    for one, other in pairwise(points):
        assert other.gain == pytest.approx(other.mean - one.mean)


def test_repeating_builds_nothing_and_the_student_is_the_last_part_s(spent):
    config, store, _ = spent
    again = Store(store.root)
    repeated = prepared(config, found_out(again))
    again.build(*repeated.spent.curve, repeated.queries)
    assert not again.built
    chain = described(config, known(again))
    # the last point is of the student that the run leaves
    embedded = chain.parts[""].spent.curve[-1].arguments["ranking"].arguments["passage_embeddings"]
    assert embedded.arguments["weights"].step.key == chain.student.key


def test_it_stops_where_a_part_gains_nothing(spent):
    """Without learning, all students are the untuned one: two parts of three are had."""
    config, store, _ = spent
    still = config.copy()
    still.trainer.learning_rate = 0
    store = Store(store.root)
    part = prepared(still, found_out(store))
    store.build(*part.spent.curve)
    points = [store.load(point) for point in part.spent.curve]
    assert [(point.queries, point.gain, point.ended) for point in points] == [
        (0, None, False),
        (9, 0, False),
        (18, 0, True),
    ]
    # The plan follows what is known, and before that says the most.
    for of, parts in ((store, 2), (Store(store.root / "empty"), 3)):
        plan = lines(of, described(still, known(of)).steps)
        assert sum(line.stage == "asked_passages" for line in plan) == parts


def test_what_was_killed_goes_on(spent, monkeypatch, command, tmp_path):
    config, _, _ = spent
    own = config.copy()
    own.cache_dir = str(tmp_path)
    real, calls = train.function, []

    def killed(folder, *arguments, **settings):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(folder, *arguments, **settings)

    monkeypatch.setattr(train, "function", killed)
    first = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepared(own, found_out(first))
    monkeypatch.setattr(train, "function", real)
    second = Store(tmp_path)
    part = prepared(own, found_out(second))
    second.build(part.queries)
    assert not first.built & second.built
    assert {key.partition("-")[0] for key in second.built} >= {"training", "learning_curve"}
    assert len(part.spent.curve) > 2


def test_a_budget_for_all_there_is_has_the_same_queries(spent, command):
    config, store, _ = spent
    whole, all_bought = config.copy(), config.copy()
    whole.generator.budget, all_bought.generator.budget, all_bought.generator.parts = None, 1000, 2
    store = Store(store.root)
    without, bought = prepare(whole), prepared(all_bought, found_out(store))
    store.build(without.queries, bought.queries)
    assert store.load(bought.queries).to_dict() == store.load(without.queries).to_dict()
    assert len(bought.spent.curve) == 2 and store.load(bought.spent.curve[-1]).ended  # none is left


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("querytype.total=9", "give querytype.total=null"),
        ("groups.dev_fraction=0", "groups.dev_fraction must be above 0"),
        ("groups.scored_before=5", "leave groups.scored_before out"),
        ("generator.choose=best", "use disagreement or random"),
        ("querytype=human", "has no queries to write"),
    ],
)
def test_what_does_not_go_together_is_refused(command, change, message):
    with pytest.raises(InputError, match=message):
        described(composed([*command, *BUDGET, change]))


@pytest.fixture
def server(monkeypatch):
    """An API that answers with the passage's first words, and counts what it is asked."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = body["messages"][0]["content"]
            asked[message] += 1
            words = " ".join(message.split("\n")[-1].split()[:5])
            values = {"choices": [{"message": {"content": words}, "finish_reason": "stop"}]}
            content = json.dumps(values | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", asked
    http.shutdown()
    http.server_close()


def test_a_language_model_is_asked_for_no_more_than_the_budget(server, command, tmp_path):
    url, asked = server
    own = [o for o in command if not o.startswith(("generator", "evaluation.heldout"))]
    model = ["generator=openai", f"generator.url={url}", "generator.model=m", "generator.passage_first=false"]
    config = composed([*own, *BUDGET, *model, f"cache_dir={tmp_path}"])
    store = Store(tmp_path)
    first = asked_steps(prepared(config, never))[0]
    store.build(first)
    part = prepared(config, never)
    store.build(part.queries)
    assert set(asked.values()) == {1} and len(asked) == 27
    sampled = config.copy()
    sampled.generator.budget, sampled.generator.passages = None, 9
    drawn = prepare(sampled).raw
    store.build(drawn)  # the first part is what is drawn without a budget
    assert store.load(drawn)["source"][:] == store.load(first).rows.tolist() and len(asked) == 27
    sampled.generator.passages = None
    everything = config.copy()
    everything.generator.budget = 1000
    store.build(prepare(sampled).queries, prepared(everything, never).queries)
    tables = [
        store.load(of).to_dict() for of in (prepare(sampled).queries, prepared(everything, never).queries)
    ]
    assert tables[0] == tables[1] and set(asked.values()) == {1} and len(asked) == 36


def test_the_command_says_and_keeps_the_curve(run, command, tmp_path):
    own = [*command, *BUDGET, "cache_dir=cache"]
    log = run(tmp_path, *own, "hydra.run.dir=run").stdout
    facts = json.loads((tmp_path / "run/metrics.json").read_text())
    points = facts["budget"]
    said = re.findall(r"  ([\d,]+) queries of \d+ passages: nDCG@10 (\d\.\d+)", log)
    assert said == [(str(p["queries"]), f"{p['mean']:.3f}") for p in points[1:]] and len(points) >= 3
    assert facts["yields"]["claim"]["generated"] == points[-1]["queries"]
    card = (tmp_path / "run/model/README.md").read_text()
    assert f"\n- {points[-1]['queries']} queries of {points[-1]['passages']} passages: nDCG@10" in card
    assert facts["curve"] and math.isfinite(facts["curve"][-1][1])
    again = run(tmp_path, *own, "hydra.run.dir=again").stdout
    assert "built in" not in again
    planned = run(tmp_path, *own, "plan=true").stdout
    assert "nothing to build" in planned
    generate = [sys.executable, "-m", "dense_retrieval.generate", *own, "hydra.run.dir=written"]
    wrote = subprocess.run(generate, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "built in" not in wrote.stdout
    rows = [json.loads(line) for line in (tmp_path / "written/queries.jsonl").read_text().splitlines()]
    assert sum(row["querytype"] == "claim" for row in rows) >= points[-1]["queries"]
