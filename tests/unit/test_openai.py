"""The OpenAI backend, against a real HTTP server on loopback."""

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dense_retrieval.memo import Memo
from dense_retrieval.queries.backends.openai import OpenAI
from dense_retrieval.queries.generate import Completion, Request, generate
from dense_retrieval.records import InputError

KEY = "sk-very-secret"


def asked(n: int) -> list[Request]:
    return [Request(f"passage {i}", 0, i) for i in range(n)]


def answer(body: dict, **changes: Any) -> bytes:
    """A chat completion as servers give it, 10 + 5 tokens, 4 of them cached."""
    text = f"query of {body['messages'][0]['content']} with seed {body['seed']}"
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    values = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}
    return json.dumps(values | changes).encode()


class Server:
    """What it does to a try of a message is ``behave(handler, body, number of the try)``; None = answers."""

    def __init__(self) -> None:
        self.tries: Counter[str] = Counter()
        self.headers: list[dict] = []
        self.bodies: list[dict] = []
        self.times: list[float] = []
        self.in_flight = self.most_in_flight = 0
        self.behave: Callable[[BaseHTTPRequestHandler, dict, int], bool | None] = lambda *_: None
        self.lock = threading.Lock()
        self.closing = threading.Event()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        with self.lock:
            self.tries[text] += 1
            number = self.tries[text]
            self.headers.append(dict(handler.headers))
            self.bodies.append(body)
            self.times.append(time.monotonic())
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if not self.behave(handler, body, number):
                send(handler, 200, answer(body))
        finally:
            with self.lock:
                self.in_flight -= 1


def send(handler: BaseHTTPRequestHandler, status: int, content: bytes, **headers: str) -> bool:
    handler.send_response(status)
    handler.send_header("Content-Length", headers.pop("length", str(len(content))))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)
    return True


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            with contextlib.suppress(OSError):
                state.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield state
    state.closing.set()
    http.shutdown()
    http.server_close()


def client(server: Server, **changes: Any) -> OpenAI:
    settings = {"concurrency": 4, "backoff_s": 0.01, "timeout_s": 5.0} | changes
    return OpenAI(server.url, "tiny", **settings)


def hang_up(handler: BaseHTTPRequestHandler) -> bool:
    handler.close_connection = True
    return True


def half_a_line(handler: BaseHTTPRequestHandler, body: dict) -> bool:
    send(handler, 200, answer(body)[:40], length=str(len(answer(body))))
    return hang_up(handler)


OUTAGES = {
    "429": lambda s, h, b: send(h, 429, b'{"error": {"message": "slow down"}}', Retry_After="0"),
    "500": lambda s, h, b: send(h, 500, b"Internal Server Error"),
    "503": lambda s, h, b: send(h, 503, b"<html>loading</html>"),
    "not JSON": lambda s, h, b: send(h, 200, b"<html>hello</html>"),
    "no choices": lambda s, h, b: send(h, 200, b'{"error": {"message": "upstream broke"}}'),
    "endless count": lambda s, h, b: send(
        h, 200, answer(b).replace(b'"completion_tokens": 5', b'"completion_tokens": 1e999')
    ),
    "no list": lambda s, h, b: send(h, 200, b"[1]"),
    "half a JSON": lambda s, h, b: send(h, 200, answer(b)[:40]),
    "half a line": lambda s, h, b: half_a_line(h, b),
    "closed": lambda s, h, b: hang_up(h),
    "silent": lambda s, h, b: s.closing.wait(2) or True,
}


def patience(outage: str) -> float:
    """Seconds; long where nothing waits for them, so that a busy machine fails no test."""
    return 0.5 if outage == "silent" else 20.0


def test_answers_counts_and_what_is_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    extra = {"top_p": None, "chat_template_kwargs": {"enable_thinking": False}}
    found = dict(client(server, temperature=0.5, max_tokens=7, extra_body=extra).complete(asked(9)))
    assert found == {
        i: Completion(f"query of passage {i} with seed {i}", "stop", prefilled=6, written=5) for i in range(9)
    }
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.bodies[0] == {
        "model": "tiny",
        "temperature": 0.5,
        "max_tokens": 7,
        "messages": [{"role": "user", "content": f"passage {server.bodies[0]['seed']}"}],
        "seed": server.bodies[0]["seed"],
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_a_cut_answer_and_one_without_usage(server):
    choice = {"message": {"content": None}, "finish_reason": "length"}
    server.behave = lambda h, body, _: send(h, 200, answer(body, choices=[choice], usage=None))
    assert list(client(server).complete(asked(1))) == [(0, Completion("", "length", 4, 1))]
    assert "Authorization" not in server.headers[0]


def test_many_requests_are_in_flight(server):
    everyone = threading.Barrier(8)  # breaks unless 8 requests are there at the same time
    server.behave = lambda *_: everyone.wait(5) and None
    assert len(list(client(server, concurrency=8).complete(asked(24)))) == 24
    assert server.most_in_flight == 8


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_passes_is_tried_again(server, outage):
    server.behave = lambda h, body, number: number <= 2 and OUTAGES[outage](server, h, body)
    found = dict(client(server, timeout_s=patience(outage)).complete(asked(3)))
    assert sorted(found) == [0, 1, 2]
    assert set(server.tries.values()) == {3}


@pytest.mark.parametrize("outage", OUTAGES)
def test_what_does_not_pass_ends_with_one_line_and_all_that_is_finished(server, tmp_path, outage):
    """The queries before the outage are kept, and a second run asks for the others only."""
    server.behave = lambda h, body, _: body["seed"] >= 5 and OUTAGES[outage](server, h, body)
    settings = {"timeout_s": patience(outage), "retries": 1, "concurrency": 2}
    with Memo(tmp_path / "m.sqlite") as memo:
        with pytest.raises(InputError, match=r"gave up after 2 tries.*5 queries are finished") as error:
            generate(client(server, **settings), memo, asked(8))
        assert "\n" not in str(error.value) and server.url in str(error.value)
        first = server.tries.copy()
        server.behave = lambda *_: None
        found = generate(client(server), memo, asked(8))
    assert [c.text for c in found] == [f"query of passage {i} with seed {i}" for i in range(8)]
    again = server.tries - first
    assert again == {f"passage {i}": 1 for i in (5, 6, 7)}


def test_retry_after_is_waited_for(server):
    server.behave = lambda h, body, number: number == 1 and send(h, 429, b"{}", Retry_After="1")
    assert len(list(client(server).complete(asked(1)))) == 1
    assert server.times[1] - server.times[0] >= 1


def test_a_server_that_wants_an_hour_is_given_up(server):
    server.behave = lambda h, *_: send(h, 429, b'{"error": {"message": "daily limit"}}', Retry_After="3600")
    with pytest.raises(InputError, match="daily limit"):
        list(client(server).complete(asked(1)))


def test_no_server(server):
    with pytest.raises(InputError, match=r"generator.url=http://127.0.0.1:9/v1: gave up.*refused"):
        list(OpenAI("http://127.0.0.1:9/v1", "m", retries=1, backoff_s=0.01).complete(asked(2)))


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "generator.model"), (400, "extra_body")],
)
def test_what_the_user_must_mend_is_not_tried_again(server, monkeypatch, caplog, status, remedy):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    said = json.dumps({"error": {"message": f"no:\n {KEY} is\x1b\ud800 bad"}}).encode()
    server.behave = lambda h, body, _: body["seed"] >= 3 and send(h, status, said)
    backend, found = client(server, concurrency=1), []
    with pytest.raises(InputError, match=rf"status {status}: no: \*\*\* is�� bad; .*{remedy}") as error:
        found.extend(backend.complete(asked(5)))  # extend keeps what came before the error
    assert len(found) == 3 and max(server.tries.values()) == 1
    assert KEY not in str(error.value) + caplog.text + repr(vars(backend))


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "...", "code": "context_length_exceeded"}},
        {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, ..."},
        {
            "error": {
                "message": "the request exceeds the available context size",
                "type": "exceed_context_size_error",
            }
        },
    ],
)
def test_a_prompt_that_is_too_long_is_that_request_s_alone(server, said):
    server.behave = lambda h, body, _: body["seed"] == 1 and send(h, 400, json.dumps(said).encode())
    found = dict(client(server).complete(asked(3)))
    assert {i: c.finish for i, c in found.items()} == {0: "stop", 1: "context", 2: "stop"}
    assert found[1] == Completion("", "context", 0, 0)


def test_the_cap_is_kept_and_all_that_was_paid_for_too(server, tmp_path):
    """15 tokens a query, estimated and counted: 8 of them fit 130."""
    with Memo(tmp_path / "m.sqlite") as memo:
        backend = client(server, concurrency=3, max_total_tokens=130, max_tokens=12)
        with pytest.raises(InputError, match=r"generator.max_total_tokens=130.*8 queries are finished"):
            generate(backend, memo, asked(20))
        assert sum(server.tries.values()) == 8
        found = generate(client(server), memo, asked(20))
    assert len(found) == 20 and sum(server.tries.values()) == 20


@pytest.fixture
def terminal():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_keeps_what_is_in_flight(server, tmp_path):
    released = threading.Event()

    def behave(handler: BaseHTTPRequestHandler, body: dict, number: int) -> None:
        if body["seed"] == 11:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        elif body["seed"] > 11:
            released.wait(0.2)

    server.behave = behave
    before = signal.getsignal(signal.SIGINT)
    with Memo(tmp_path / "m.sqlite") as memo:
        with pytest.raises(InputError, match=r"stopped by Ctrl-C; \d+ queries are finished"):
            generate(client(server, concurrency=3), memo, asked(40))
        assert signal.getsignal(signal.SIGINT) is before
        first = server.tries.copy()
        assert 12 <= len(first) < 20
        generate(client(server), memo, asked(40))
    assert len(server.tries) == 40 and set(server.tries.values()) == {1}


@pytest.mark.usefixtures("terminal")
def test_a_second_ctrl_c_does_not_wait(server):
    answered = threading.Event()

    def behave(*_: object) -> bool:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        server.closing.wait(10)
        answered.set()
        return True

    server.behave = behave
    with pytest.raises(KeyboardInterrupt):
        list(client(server, concurrency=1).complete(asked(1)))
    assert not answered.is_set()


@pytest.mark.parametrize(
    "url", ["localhost:8000/v1", "ftp://a/v1", f"http://me:{KEY}@a/v1", f"http://a?key={KEY}"]
)
def test_a_url_that_is_none_or_holds_a_key(url):
    with pytest.raises(InputError, match=r"generator.url") as error:
        OpenAI(url, "m")
    assert KEY not in str(error.value)
