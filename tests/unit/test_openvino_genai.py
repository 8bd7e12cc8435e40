"""The OpenVINO GenAI backend against a stand-in for the library, which reads no model that a test could build.

The stand-in's answers depend on prompt and seed; it counts the tokens that its prefix cache does not have.
"""

import sys
import types
import zlib

import numpy as np
import pytest

from dense_retrieval.queries.backends.openvino import OpenVINO
from dense_retrieval.queries.generate import Request, requests
from dense_retrieval.queries.prompts import Prompt
from dense_retrieval.records import InputError

PASSAGES = ["Kale is a cabbage. " * 8, "Basalt is a dark rock of cooled lava. " * 8]
BLOCK = 32


class Tokenizer:
    """One token a character."""

    def apply_chat_template(self, messages, add_generation_prompt, extra_context):
        assert add_generation_prompt and extra_context == {"enable_thinking": False}
        return f"<user>{messages[0]['content']}<assistant>"

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        ids = np.array([[ord(c) for c in text]])
        return types.SimpleNamespace(input_ids=types.SimpleNamespace(data=ids))

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(map(chr, ids))


class Pipeline:
    def __init__(self, path, scheduler, device, properties):
        if "broken" in path:
            raise RuntimeError("no magic")
        assert device == "CPU" and properties == {"INFERENCE_NUM_THREADS": 2}
        assert scheduler.enable_prefix_caching and scheduler.max_num_seqs == OpenVINO.at_once
        self.cache: set[tuple[int, ...]] = set()
        self.computed = 0
        self.calls: list[int] = []

    def get_tokenizer(self):
        return Tokenizer()

    def get_config(self):
        return types.SimpleNamespace(eos_token_id=7)

    def generate(self, prompts, drawn):
        self.calls.append(len(prompts))
        found, cached = [], set(self.cache)
        for prompt, how in zip(prompts, drawn, strict=True):
            ids = prompt.data[0].tolist()
            blocks = [tuple(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK)]
            self.computed += len(ids) - BLOCK * sum(block in cached for block in blocks)
            self.cache |= set(blocks)
            assert (how.temperature, how.top_p, how.do_sample, how.eos_token_id) == (0.8, 0.9, True, 7)
            answer = f"{zlib.crc32(bytes(i % 256 for i in ids)) % 999} {how.rng_seed % 99}"
            cut = len(answer) > how.max_new_tokens
            found.append(
                types.SimpleNamespace(
                    m_generation_ids=[[ord(c) for c in answer[: how.max_new_tokens]]],
                    finish_reasons=["length" if cut else "stop"],
                )
            )
        return found


@pytest.fixture
def model(tmp_path, monkeypatch):
    library = types.SimpleNamespace(
        SchedulerConfig=types.SimpleNamespace,
        ContinuousBatchingPipeline=Pipeline,
        GenerationFinishReason=types.SimpleNamespace(LENGTH="length"),
    )
    tensor = lambda array: types.SimpleNamespace(data=array)  # noqa: E731
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    monkeypatch.setitem(sys.modules, "openvino", types.SimpleNamespace(Tensor=tensor))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    return lambda name="model", **given: OpenVINO(
        str(file.rename(tmp_path / f"{name}.gguf")), threads=2, top_p=0.9, **given
    )


def asked() -> list[Request]:
    prompts = [
        Prompt(name, ("Passage: {passage}", f"Write one {name}. {{examples}}"), ("a", "b"), 1)
        for name in ("claim", "question", "keyword")
    ]
    return requests(PASSAGES, prompts, True, 0)


def expected(request: Request) -> str:
    text = f"<user>{request.text}<assistant>"
    return f"{zlib.crc32(bytes(ord(c) % 256 for c in text)) % 999} {request.seed % 99}"


def test_each_request_gets_the_answer_to_its_prompt_by_its_seed_whatever_its_batch(model):
    backend, all_of_them = model(), asked()
    answers = dict(backend.complete(all_of_them))
    assert {i: a.text for i, a in answers.items()} == {i: expected(r) for i, r in enumerate(all_of_them)}
    assert {a.finish for a in answers.values()} == {"stop"}


def test_a_shared_passage_is_read_once_and_the_tokens_read_are_told(model):
    backend, all_of_them = model(), asked()
    answers = dict(backend.complete(all_of_them))
    assert backend._model.calls == [2, 4]  # the first of each passage, then what shares with it
    assert sum(a.prefilled for a in answers.values()) == backend._model.computed
    assert backend._model.computed < 0.6 * sum(len(r.text) for r in all_of_them)


def test_a_cut_answer_and_a_prompt_that_is_too_long_are_told(model):
    backend, all_of_them = model(max_tokens=2), asked()
    assert {a.finish for _, a in backend.complete(all_of_them)} == {"length"}
    backend.room = len(all_of_them[0].text) - 1
    finishes = {i: a.finish for i, a in backend.complete(all_of_them)}
    assert finishes[0] == "context" and set(finishes) == set(range(6))


def test_errors_name_the_path_and_the_remedy(model, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such GGUF file"):
        OpenVINO(str(tmp_path / "none.gguf"))
    broken = model("broken")
    with pytest.raises(InputError, match="OpenVINO cannot read it: no magic"):
        list(broken.complete(asked()))
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(InputError, match="pip install openvino-genai"):
        list(OpenVINO(broken.path).complete(asked()))
