"""The backends of transformers and vLLM: tiny random models, a stand-in for vLLM."""

import sys
import types
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer, with_weights
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from dense_retrieval.executor import Local
from dense_retrieval.memo import Memo
from dense_retrieval.queries.backends import transformers as backend
from dense_retrieval.queries.backends.llama_cpp import LlamaCpp
from dense_retrieval.queries.backends.openai import OpenAI
from dense_retrieval.queries.backends.sampling import Sampling
from dense_retrieval.queries.backends.transformers import GumbelNoise, Transformers
from dense_retrieval.queries.backends.vllm import VLLM
from dense_retrieval.queries.generate import Completion, Request, generate
from dense_retrieval.queries.split import Split, dealt_out
from dense_retrieval.records import InputError
from dense_retrieval.stage import Outside

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


@pytest.mark.parametrize("backend", [LlamaCpp, OpenAI, Transformers, VLLM])
@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 1.5), ("max_tokens", 0)],
)
def test_sampling_is_checked_when_a_backend_is_made(backend, name, value, tmp_path):
    (tmp_path / "model").touch()
    where = ["http://localhost/v1", "tiny"] if backend is OpenAI else [str(tmp_path / "model")]
    assert backend(*where, temperature=0, top_p=1.0).sampling == Sampling(0, 1.0, 50)
    with pytest.raises(InputError, match=rf"^generator\.{name}={value} is out of range"):
        backend(*where, **{name: value})


def test_a_generator_that_lacks_weights(causal_folder, tmp_path):
    with_weights(causal_folder, tmp_path, lambda w: w.pop("model.norm.weight"))
    with pytest.raises(
        InputError, match=rf"^generator\.path={tmp_path} lacks the weights model\.norm\.weight"
    ):
        list(Transformers(str(tmp_path), device="cpu").complete(REQUESTS))


def test_a_folder_without_a_tokenizer_and_no_folder(causal_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((causal_folder / name).read_bytes())
    with pytest.raises(InputError, match=rf"^generator\.path={tmp_path}: .* has no tokenizer"):
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


def test_batches_dealt_out_to_processes_are_answered_as_by_one(causal_folder, tmp_path):
    settings = {"path": str(causal_folder), "max_tokens": 12, "max_tokens_a_batch": 60, "device": "cpu"}
    settings["_target_"] = "dense_retrieval.queries.backends.transformers.Transformers"
    alone = Transformers(**{name: value for name, value in settings.items() if name != "_target_"})
    asked = [*REQUESTS, Request(" ".join(["star"] * 99), 0, 0)]  # the last one does not fit
    expected = sorted(alone.complete(asked), key=lambda item: item[0])
    model = Outside(causal_folder)
    for n in (1, 2):
        with dealt_out(settings, model, Local(n)) as writer, Memo(tmp_path / f"{n}") as memo:
            assert sorted(writer.complete(asked), key=lambda item: item[0]) == expected
            assert generate(writer, memo, asked) == [completion for _, completion in expected]
            assert len(alone.batches(asked)) > 4 and writer.devices == n
    with dealt_out({"_target_": "conftest.tiny_tokenizer"}, model, Local(2)) as other:
        assert not isinstance(other, Split)
