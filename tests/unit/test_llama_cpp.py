"""The llama.cpp backend against a stand-in for the library, which takes too long to build for a test.

The stand-in keeps a cache of tokens as llama.cpp does; its answers depend on all tokens that it holds.
"""

import sys
import types
import zlib

import pytest

from dense_retrieval.queries.backends.llama_cpp import LlamaCpp
from dense_retrieval.queries.generate import Request, requests
from dense_retrieval.queries.prompts import Prompt
from dense_retrieval.records import InputError

END = 0
PASSAGES = ["Kale is a cabbage.", "Basalt is a dark rock of cooled lava."]


class Llama:
    """One token a byte; an answer is some bytes of a hash of the cache and the seed."""

    def __init__(self, path, n_ctx, **_):
        if "broken" in path:
            raise ValueError("no magic")
        self.cache: list[int] = []
        self.n_tokens = self.seed = self.evaluated = 0
        self.n_ctx = n_ctx
        self.metadata = {} if "base" in path else {"tokenizer.chat_template": "template"}
        self._model = types.SimpleNamespace(vocab=None)

    def tokenize(self, text, add_bos=True, special=False):
        return [1] * add_bos + list(text)

    def detokenize(self, tokens, special=False):
        return bytes(tokens)

    def token_eos(self):
        return END

    token_bos = token_eos

    def reset(self):
        self.n_tokens = 0

    def set_seed(self, seed):
        self.seed = seed

    def eval(self, tokens):
        self.cache = self.cache[: self.n_tokens] + list(tokens)
        self.n_tokens = len(self.cache)
        self.evaluated += len(tokens)
        assert self.n_tokens <= self.n_ctx

    def generate(self, tokens, reset, temp, top_p, top_k, min_p):
        assert not reset and (temp, top_p, top_k, min_p) == (0.8, 0.9, 0, 0.0)
        self.eval(tokens)
        yield from f"{zlib.crc32(bytes(self.cache)) % 999} {self.seed % 99}".encode()
        yield END

    def close(self):
        pass


class Formatter:
    def __init__(self, template, eos_token, bos_token):
        assert template == "template"

    def __call__(self, messages, enable_thinking):
        assert not enable_thinking
        return types.SimpleNamespace(prompt=f"<user>{messages[0]['content']}<assistant>")


@pytest.fixture
def model(tmp_path, monkeypatch):
    library = types.SimpleNamespace(
        Llama=Llama,
        llama_token_is_eog=lambda vocab, token: token == END,
        llama_chat_format=types.SimpleNamespace(Jinja2ChatFormatter=Formatter),
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", library)

    def load(name="model.gguf", **settings):
        (tmp_path / name).write_bytes(b"x")
        return LlamaCpp(str(tmp_path / name), top_p=0.9, **settings)

    return load


def asked(passage_first=True):
    return requests(PASSAGES, [Prompt.load(t) for t in ("claim", "web", "title")], passage_first, 0)


def answers(backend, wanted):
    found = dict(backend.complete(wanted))
    assert sorted(found) == list(range(len(wanted)))
    return [found[i].text for i in range(len(wanted))]


@pytest.mark.parametrize("passage_first", [True, False])
def test_answers_do_not_depend_on_what_else_is_asked(model, passage_first):
    wanted = asked(passage_first)
    whole = answers(model(), wanted)
    assert len(set(whole)) == 6
    assert answers(model(), wanted[::-1]) == whole[::-1]
    assert [answers(model(), [request])[0] for request in wanted] == whole
    backend = model()
    assert answers(backend, wanted[3:]) + answers(backend, wanted[:3]) == whole[3:] + whole[:3]


def test_what_requests_share_is_computed_once(model):
    for passage_first, heads in ((True, 2), (False, 3)):
        backend, wanted = model(), asked(passage_first)
        found = dict(backend.complete(wanted))
        prompt = len("<user><assistant>")
        expected = sum(len(r.text) - r.shared + len("<assistant>") for r in wanted)
        shared = {r.text[: r.shared] for r in wanted}
        assert len(shared) == heads
        expected += sum(len(head) + len("<user>") for head in shared)  # no second beginning of the text
        assert sum(c.prefilled for c in found.values()) == expected == backend._model.evaluated
        assert expected < sum(len(r.text) + prompt for r in wanted)


def test_an_answer_is_cut_and_a_long_prompt_is_skipped(model):
    cut = dict(model(max_tokens=2).complete(asked()))
    assert {(c.finish, c.written) for c in cut.values()} == {("length", 2)}
    wanted = [Request("a" * 100, 10, 0), Request("b" * 20, 5, 0), Request("c" * 300, 10, 0)]
    found = dict(model(context=128, max_tokens=20).complete(wanted))
    assert [found[i].finish for i in range(3)] == ["context", "stop", "context"]
    assert found[0].text == "" and found[0].prefilled == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("base.gguf", "has no chat template"), ("broken.gguf", "llama.cpp cannot read it: no magic")],
)
def test_a_file_that_is_no_chat_model(model, name, message):
    with pytest.raises(InputError, match=message):
        list(model(name).complete(asked()))


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="generator.path=nowhere.gguf: there is no such GGUF file"):
        LlamaCpp("nowhere.gguf")
    (tmp_path / "model.gguf").touch()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(
        InputError, match="^generator=llama_cpp needs llama-cpp-python: pip install llama-cpp-python"
    ):
        list(LlamaCpp(str(tmp_path / "model.gguf")).complete(asked()))
