"""From written queries to groups: each filter that is asked for, in its order, counted by type and reason."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dense_retrieval import results
from dense_retrieval.config import CONF
from dense_retrieval.evaluation.report import yields
from dense_retrieval.nodes import corpora
from dense_retrieval.pipeline import label
from dense_retrieval.prepare import Part, prepare
from dense_retrieval.records import InputError
from dense_retrieval.store import Store
from dense_retrieval.synthetic import _judge
from dense_retrieval.views import untuned


class Judge(ThreadingHTTPServer):
    """Answers no about queries with an odd number of letters, and neither yes nor no about those of p7."""

    daemon_threads = True

    def __init__(self, unclear: str) -> None:
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.unclear = unclear
        self.bodies: list[dict] = []


class JudgeHandler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        passage, query = body["messages"][0]["content"].split("\n")[:3:2]
        said = "no" if len(query) % 2 else "Yes"
        if self.server.unclear in passage:
            said = "Maybe"
        message = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
        answer = json.dumps(message).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def judge(corpus):
    texts = [json.loads(line)["text"] for line in (corpus / "corpus.jsonl").read_text().splitlines()]
    server = Judge(texts[7])
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def prepared(tmp_path: Path, command: list[str], *overrides: str) -> tuple[Store, Part]:
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=[*command, f"cache_dir={tmp_path}", *overrides])
        (part,) = (prepare(of) for of in corpora(config).values())
    return Store(tmp_path), part


def test_every_step_is_counted(tmp_path, command, corpus, judge, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    lines = (corpus / "synthetic.jsonl").read_text().splitlines()
    lines += [
        json.dumps(json.loads(lines[n]) | {"text": json.loads(lines[n])["text"].upper()}) for n in (0, 2)
    ]
    (file := tmp_path / "queries.jsonl").write_text("\n".join(lines))
    asks = f"'generator=openai generator.url=http://127.0.0.1:{judge.server_port}/v1 generator.model=m'"
    filters = ["querytype.near_duplicates=1", f"querytype.judge={asks}"]
    own = [*command, f"generator.path={file}", *filters]
    store, part = prepared(tmp_path / "cache", own, "querytype.difficulty=0.5")
    assert [step.stage.name for step in part.filtered] == [
        *("cleaned_queries", "distinct_queries", "judged_queries", "hard_queries")
    ]
    found = results.prepared(store, part, label(part, untuned(part.c), None))["claim"]
    steps = [name for name in found if name != "dropped"]
    assert steps == [
        *("generated", "cleaned", "distinct", "judged", "hard"),
        *("drawn", "retriever filter", "4 passages", "teacher filter", "labels", "train", "dev"),
    ]
    assert found["generated"] == found["cleaned"] == 38  # of 36 passages, 4 are held out
    dropped = found["dropped"]
    assert dropped["near-duplicate"] >= 2 and found["distinct"] == 38 - dropped["near-duplicate"]
    lost = dropped["not answered by its passage"] + dropped.get("judged neither yes nor no", 0)
    assert found["judged"] == found["distinct"] - lost == len(judge.bodies) - lost
    assert found["hard"] == round(found["judged"] / 2) == found["drawn"]
    assert found["hard"] == found["generated"] - sum(dropped.values())
    shown = [str(found[name]) for name in steps[:5]]
    assert yields({"claim": found}).splitlines()[2].split()[:6] == ["claim", *shown]
    assert {body["temperature"] for body in judge.bodies} == {0.0} and {
        body["max_tokens"] for body in judge.bodies
    } == {4}

    kept, texts = store.load(part.filtered[2]), store.load(part.corpus).passages["text"]
    assert all(len(f"Query: {query['text']}") % 2 == 0 for query in kept)
    assert judge.unclear not in {texts[row] for row in kept["source"]}

    asked = len(judge.bodies)
    store, part = prepared(tmp_path / "cache", own)  # another chain, the same questions
    store.build(part.queries)
    assert store.load(part.queries).num_rows == found["judged"] and len(judge.bodies) == asked


def test_filters_that_are_not_asked_for_are_not_there(tmp_path, command):
    _, part = prepared(tmp_path, command)
    assert [step.stage.name for step in part.filtered] == ["cleaned_queries"]
    assert part.filtered[0].made_from["settings"] == {}
    _, part = prepared(tmp_path, command, "querytype.types=[human]")
    assert part.filtered == []


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ("generator", "querytype.judge=generator is no language model; give its overrides, such as"),
        ("'generator=opnai'", "querytype.judge='generator=opnai': .*opnai"),
        ("'generator=openai generator.concurrency=0'", "generator.concurrency=0 is out of range"),
        ("'generator=files'", "querytype.judge='generator=files': "),
    ],
)
def test_a_judge_that_is_none_is_one_line(tmp_path, command, judge, message):
    with pytest.raises(InputError, match=message) as error:
        prepared(
            tmp_path,
            command,
            f'querytype.judge="{judge}"' if "=" not in judge else f"querytype.judge={judge}",
        )
    assert "\n" not in str(error.value)


def test_a_judge_answers_briefly_and_always_the_same():
    """What its overrides say comes first; the generator itself keeps its own settings."""
    composed = {}
    with initialize_config_dir(CONF, version_base=None):
        for judge in ("generator", "'generator=llama_cpp generator.path=x.gguf generator.max_tokens=9'"):
            own = ["generator=transformers", f"querytype.judge={judge}"]
            config = compose("config", overrides=own)
            composed[judge.partition("=")[0]] = _judge(config)
            assert (config.generator.temperature, config.generator.max_tokens) == (0.8, 50)
    same, other = composed.values()
    assert (same.temperature, same.max_tokens, same.path) == (0, 4, config.generator.path)
    assert (other.temperature, other.max_tokens, other.path) == (0, 9, "x.gguf")
    assert other._target_.endswith("LlamaCpp") and same._target_ == config.generator._target_
