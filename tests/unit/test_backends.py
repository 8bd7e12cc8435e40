"""Language-model backends: a real HTTP server on loopback, tiny random models, a stand-in for vLLM."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dense_retrieval.memo import Memo
from dense_retrieval.queries.backends import transformers as backend
from dense_retrieval.queries.backends.openai import OpenAI
from dense_retrieval.queries.backends.transformers import GumbelNoise, Transformers
from dense_retrieval.queries.backends.vllm import VLLM
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
    said = json.dumps({"error": {"message": f"no:\n {KEY} is bad"}}).encode()
    server.behave = lambda h, body, _: body["seed"] >= 3 and send(h, status, said)
    backend, found = client(server, concurrency=1), []
    with pytest.raises(InputError, match=rf"status {status}: no: \*\*\* is bad; .*{remedy}") as error:
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


TEXTS = [
    "the cell is in the ocean",
    "a star",
    "energy of light",
    "the root of a tree in a river of acid",
    "rock",
]
REQUESTS = [Request(text, 0, seed) for seed, text in enumerate(TEXTS * 3)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' is ' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' heat' }}{% endif %}"
)


def randomised(model: torch.nn.Module, std: float, seed: int) -> torch.nn.Module:
    """With weights so large that answers depend on prompts, and of which some answers end."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, std)
    return model


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=24,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        **sizes,
    )
    model = randomised(LlamaForCausalLM(config), 0.08, seed=1)
    # as many checkpoints have it; only its tokens may count
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=9.0, bos_token_id=2, eos_token_id=[3, 23]
    )
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seq2seq_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seq2seq")
    config = T5Config(
        vocab_size=24, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        pad_token_id=0, eos_token_id=3, decoder_start_token_id=0,
    )  # fmt: skip
    randomised(T5ForConditionalGeneration(config), 0.4, seed=2).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "[SEP]"
    tokenizer.model_max_length = 32
    tokenizer.chat_template = TEMPLATE  # pays no heed to it
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["causal_folder", "seq2seq_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_answers_do_not_depend_on_the_batch(folder, temperature):
    settings = {"temperature": temperature, "max_tokens": 12, "device": "cpu"}
    together = Transformers(str(folder), **settings)
    expected = [next(together.complete([request]))[1] for request in REQUESTS]
    assert len({c.text for c in expected}) > 2 and {c.finish for c in expected} == {"stop", "length"}
    for max_tokens_a_batch in (16_384, 70):
        model = Transformers(str(folder), max_tokens_a_batch=max_tokens_a_batch, **settings)
        assert dict(model.complete(REQUESTS)) == dict(enumerate(expected))
        order = np.random.default_rng(0).permutation(len(REQUESTS))[:9]
        some = dict(model.complete([REQUESTS[i] for i in order]))
        assert [some[i] for i in range(9)] == [expected[i] for i in order]


def test_greedy_is_what_generate_gives_one_by_one(folder):
    backend = Transformers(str(folder), temperature=0, max_tokens=12, device="cpu")
    found = dict(backend.complete(REQUESTS))
    seq2seq = folder.name.startswith("seq2seq")
    model = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(folder)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=own.eos_token_id, pad_token_id=0, decoder_start_token_id=0
    )
    tokenizer = tiny_tokenizer()
    for i, request in enumerate(REQUESTS):
        text = request.text if seq2seq else f"user is {request.text} heat"
        ids = tokenizer(text, add_special_tokens=seq2seq, return_tensors="pt").input_ids
        with torch.no_grad():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )
        answer = output[0, 1 if seq2seq else ids.shape[1] :]
        ended = bool(np.isin(answer[-1], own.eos_token_id))
        text = tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
        assert found[i] == Completion(
            text, "stop" if ended else "length", ids.shape[1], len(answer) - int(ended)
        )


def test_without_a_chat_template_the_text_is_the_prompt(causal_folder):
    tokenizer = tiny_tokenizer()
    plain = tokenizer("a star")["input_ids"]
    assert backend.prompt_ids(tokenizer, "a star") == plain
    tokenizer.chat_template = TEMPLATE
    assert backend.prompt_ids(tokenizer, "a star", chat=False) == plain
    chat = tokenizer("user is a star heat", add_special_tokens=False)["input_ids"]
    assert backend.prompt_ids(tokenizer, "a star") == chat


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.8)])
def test_sampling_follows_the_softmax(causal_folder, temperature, top_p):
    """The first words of one prompt over 3,000 seeds, against softmax(logits / T) cut by top-p."""
    n, tokenizer = 3000, tiny_tokenizer()
    ids = tokenizer("user is a star heat", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(causal_folder)(ids).logits[0, -1]
    probabilities, order = (logits / temperature).softmax(0).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities = torch.where(before < top_p, probabilities, 0)
    expected: Counter[str] = Counter()
    for token, probability in zip(
        order.tolist(), (probabilities / probabilities.sum()).tolist(), strict=True
    ):
        text = "" if token == 23 else tokenizer.decode([token], skip_special_tokens=True)  # 23 ends an answer
        expected[text] += n * probability
    model = Transformers(str(causal_folder), temperature=temperature, top_p=top_p, max_tokens=1, device="cpu")
    observed = Counter(c.text for _, c in model.complete([Request("a star", 0, seed) for seed in range(n)]))
    kept = [text for text, count in expected.items() if count > 0]
    assert set(observed) <= set(kept) and len(kept) > 3
    statistic = sum((observed[text] - expected[text]) ** 2 / expected[text] for text in kept)
    freedom = len(kept) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5  # 4 standard deviations above the mean


def test_each_step_has_noise_of_its_own_from_the_row_s_seed():
    zeros, ids = torch.zeros(2, 50), torch.zeros(2, 1, dtype=torch.long)
    noise = GumbelNoise([7, 8], "cpu")
    first, second = noise(ids, zeros), noise(ids, zeros)
    alone = GumbelNoise([8], "cpu")
    torch.testing.assert_close(alone(ids[:1], zeros[:1])[0], first[1])
    torch.testing.assert_close(alone(ids[:1], zeros[:1])[0], second[1])
    assert not torch.allclose(first[0], first[1]) and not torch.allclose(first, second)
    assert noise(ids, torch.full((2, 50), -torch.inf)).isneginf().all()  # what top-p took stays out


@pytest.mark.parametrize(("words", "fits"), [(51, True), (52, False)])
def test_a_prompt_that_leaves_no_room_for_the_answer(causal_folder, words, fits):
    """64 positions, 10 of them for the answer, 3 for the template."""
    model = Transformers(str(causal_folder), max_tokens=10, device="cpu")
    found = dict(model.complete([Request("star " * words, 0, 0), Request("a star", 0, 1)]))
    assert found[1].finish in ("stop", "length") and found[1].prefilled == 5
    if fits:
        assert found[0].prefilled == 54
    else:
        assert found[0] == Completion("", "context", 0, 0)


def test_the_answer_takes_no_room_of_an_encoder(seq2seq_folder):
    model = Transformers(str(seq2seq_folder), max_tokens=10, device="cpu")
    found = dict(model.complete([Request("star " * words, 0, 0) for words in (30, 31)]))
    assert found[0].prefilled == 32 and found[1].finish == "context"
    longer = Transformers(str(seq2seq_folder), max_tokens=10, device="cpu", context=33)
    assert next(longer.complete([Request("star " * 31, 0, 0)]))[1].prefilled == 33


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 65}, "generator.context=65.*64 tokens"),
        ({"dtype": "int8"}, "generator.dtype=int8"),
        ({"temperature": -1}, "generator.temperature=-1"),
        ({"top_p": 0}, "generator.top_p=0"),
    ],
)
def test_wrong_settings(causal_folder, changes, message):
    with pytest.raises(InputError, match=message):
        list(Transformers(str(causal_folder), device="cpu", **changes).complete(REQUESTS))


def test_a_folder_without_a_tokenizer_and_no_folder(causal_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((causal_folder / name).read_bytes())
    with pytest.raises(InputError, match="has no tokenizer"):
        list(Transformers(str(tmp_path), device="cpu").complete(REQUESTS))
    with pytest.raises(InputError, match="not/there"):
        list(Transformers("not/there", device="cpu").complete(REQUESTS))


class FakeVLLM(types.ModuleType):
    """A stand-in for vLLM, which needs a GPU: it has the few names that the backend uses, records the
    calls, and answers with the sampling seed. It cannot show that vLLM itself behaves so."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.calls: list[list[dict]] = []
        self.engine: dict = {}
        module = self

        class SamplingParams:
            def __init__(self, *, temperature: float, top_p: float, max_tokens: int, seed: int) -> None:
                self.seed, self.max_tokens = seed, max_tokens

        class LLM:
            def __init__(self, model: str, **engine: Any) -> None:
                module.engine = engine | {"model": model}

            def generate(self, prompts: list[dict], params: list[Any], *, use_tqdm: bool) -> list[Any]:
                module.calls.append(prompts)
                return [
                    types.SimpleNamespace(
                        prompt_token_ids=p["prompt_token_ids"],
                        num_cached_tokens=2,
                        outputs=[
                            types.SimpleNamespace(text=f"{s.seed}", token_ids=[1], finish_reason="stop")
                        ],
                    )
                    for p, s in zip(prompts, params, strict=True)
                ]

        self.LLM, self.SamplingParams = LLM, SamplingParams


def test_vllm_is_asked_in_chunks_with_each_request_s_seed(causal_folder, monkeypatch):
    """With a stand-in for vLLM: see FakeVLLM."""
    fake = FakeVLLM()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    model = VLLM(str(causal_folder), context=64, max_tokens=10)
    model.at_once = 4
    requests = [*REQUESTS[:9], Request("star " * 60, 0, 99)]
    answers = model.complete(requests)
    next(answers)
    assert len(fake.calls) == 1  # the first chunk is there to be kept before the second is asked
    found = {0: Completion("0", "stop", 7, 1)} | dict(answers)
    assert [len(call) for call in fake.calls] == [4, 4, 1]
    assert [found[i].text for i in range(9)] == [str(i) for i in range(9)]
    assert found[9] == Completion("", "context", 0, 0)
    assert found[1].prefilled == len(fake.calls[0][1]["prompt_token_ids"]) - 2
    assert fake.engine["max_model_len"] == 64 and fake.engine["enable_prefix_caching"] is True


def test_without_vllm_the_remedy_is_named(causal_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="pip install vllm"):
        list(VLLM(str(causal_folder)).complete(REQUESTS))
