"""Decoders as students: the last token, how texts end, instructions, bfloat16, adapters."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import decoder_tokenizer, tiny_config, tiny_decoder, tiny_tokenizer
from hydra import compose, initialize_config_dir
from peft import PeftModel
from safetensors.torch import load_file, load_model, save_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from test_gradient_cache import Texts, gradients, problem, relative_error
from test_gradient_cache import plain as plain_gradients
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertModel, LlamaTokenizer

from dense_retrieval.config import CONF
from dense_retrieval.hub import dimension
from dense_retrieval.models import adapters, prefixes, student_settings
from dense_retrieval.nodes import corpora
from dense_retrieval.records import InputError
from dense_retrieval.stage import Counted
from dense_retrieval.student.adapters import adapt, merge
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.export import export
from dense_retrieval.student.export_engine import export_to
from dense_retrieval.student.tokenizer import ended, student_tokenizer
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.training.gradient_cache import backward

TEXTS = ["the cell is a star", "ocean", "planet of the acid bird in a river of light", "rock gas tree " * 30]


def decoder(folder, **settings) -> BiEncoder:
    return BiEncoder.load(str(folder), pooling="lasttoken", passage_length=32, **settings).eval()


def embedded(student: BiEncoder, texts, length, prefix, folder) -> np.ndarray:
    folder.mkdir()
    tokenize(texts, student.tokenizer, length, prefix, folder)
    encode(student, Tokens.load(folder), folder)
    return np.load(folder / "embeddings.npy")


@torch.no_grad()
def test_the_side_of_the_padding_does_not_matter(decoder_folder):
    student = decoder(decoder_folder)
    ids = [student.tokenizer(text, truncation=True, max_length=32)["input_ids"] for text in [*TEXTS, ""]]
    assert [len(row) for row in ids] == [6, 2, 11, 32, 1] and all(row[-1] == 0 for row in ids)
    alone = torch.cat(
        [student(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in ids]
    )
    for side in ("right", "left"):
        rows = [(len(row), 32 - len(row)) for row in ids]
        padded = [
            [*row, *[0] * more] if side == "right" else [*[0] * more, *row]
            for row, (_, more) in zip(ids, rows, strict=True)
        ]
        mask = [[1] * n + [0] * more if side == "right" else [0] * more + [1] * n for n, more in rows]
        together = student(torch.tensor(padded), torch.tensor(mask))
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    expected = student.transformer(torch.tensor([ids[0]])).last_hidden_state[0, -1]
    torch.testing.assert_close(alone[0], expected / expected.norm(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ends", [True, False], ids=["ending tokenizer", "language model"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_export_gives_our_embeddings_in_sentence_transformers(tmp_path, ends, side):
    tiny_decoder().save_pretrained(tmp_path / "untuned")
    tokenizer = decoder_tokenizer("<|endoftext|>" if ends else None)
    tokenizer.padding_side = side
    tokenizer.save_pretrained(tmp_path / "untuned")
    prompt = "Instruct: the star of acid\nQuery:"
    student = decoder(tmp_path / "untuned", query_prefix=prompt)
    queries = embedded(student, TEXTS, 128, prompt, tmp_path / "queries")
    passages = embedded(student, TEXTS, 32, "", tmp_path / "passages")
    last = Tokens.load(tmp_path / "passages")
    assert {int(last[row][-1]) for row in range(4)} == {0 if ends else 1}
    export(student, tmp_path / "model", "")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.prompts["query"] == prompt and theirs.tokenizer.padding_side == side
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), passages, atol=1e-5)
    again = decoder(tmp_path / "model", query_prefix=prompt)
    np.testing.assert_array_equal(embedded(again, TEXTS, 32, "", tmp_path / "again"), passages)


def llama_tokenizer(**settings):
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁a": 3, "a": 4, "▁": 5}
    return LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], **settings)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (decoder_tokenizer(), [4, 4, 4, 0]),  # it ends texts itself
        (decoder_tokenizer(None), [4, 4, 4, 1]),
        (tiny_tokenizer(), [2, 5, 5, 3]),
        (llama_tokenizer(add_bos_token=True), [1, 3, 3, 2]),
        (llama_tokenizer(add_bos_token=True, add_eos_token=True), [1, 3, 3, 2]),
        (llama_tokenizer(), [3, 3, 3, 2]),
    ],
)
def test_each_text_ends_with_a_special_token(tokenizer, expected, tmp_path):
    """Also a text that is cut, and when the tokenizer is loaded again."""
    for _ in range(2):
        tokenizer = ended(tokenizer, "student.path=x")
        assert tokenizer("a a a a a a", truncation=True, max_length=4)["input_ids"] == expected
    assert tokenizer("")["input_ids"] == [id for id in expected if id in tokenizer.all_special_ids]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("a a a a a a", truncation=True, max_length=4)["input_ids"] == expected
    assert again("a")["input_ids"] == [*expected[:2], expected[-1]] if expected[0] in (1, 2) else True


def test_a_tokenizer_without_an_end_or_a_padding_token(decoder_folder, tmp_path):
    tokenizer = decoder_tokenizer(None)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert student_tokenizer(tmp_path, "student.path=x", False, False).pad_token == "<|im_end|>"
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"^student.path=x: its tokenizer cannot end .*append_eos=false$"):
        ended(tokenizer, "student.path=x")


def test_append_eos_is_lasttoken_s_by_default(tmp_path):
    tiny_decoder().save_pretrained(tmp_path)
    decoder_tokenizer(None).save_pretrained(tmp_path)
    for pooling, given, last in (
        ("lasttoken", None, 1),
        ("lasttoken", False, 4),
        ("mean", None, 4),
        ("mean", True, 1),
    ):
        student = BiEncoder.load(str(tmp_path), pooling=pooling, append_eos=given, passage_length=32)
        assert student.tokenizer("a")["input_ids"][-1] == last


@pytest.mark.parametrize("data", ["fiqa", "scifact", "wikiscience", "mixture"])
def test_the_instruction_names_the_task_of_the_corpus(data):
    tasks = {
        "fiqa": "Given a financial question, retrieve user replies that best answer the question",
        "scifact": "Given a scientific claim, retrieve documents that support or refute the claim",
    }
    web = "Given a web search query, retrieve relevant passages that answer the query"
    overrides = ["student=qwen3_embedding_0_6b", f"data={data}"]
    if data == "mixture":
        overrides.append("data.members=['data=fiqa','data=scifact']")
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=overrides, return_hydra_config=True)
        assert prefixes(config)["query_prefix"] == f"Instruct: {tasks.get(data, web)}\nQuery:"
        assert student_settings(config)["query_prefix"] == prefixes(config)["query_prefix"]
        assert adapters(config) is None


def test_the_members_of_a_mixture_have_instructions_of_their_own(monkeypatch):
    class Job:
        overrides = type("of", (), {"task": ["student=e5_mistral", "data=mixture"]})

    monkeypatch.setattr("dense_retrieval.nodes.HydraConfig.get", Job)
    members = "data.members=['data=fiqa','data=scifact']"
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=["student=e5_mistral", "data=mixture", members])
        found = [prefixes(of)["query_prefix"] for of in corpora(config).values()]
        assert [of.partition("Given a ")[2][:9] for of in found] == ["financial", "scientifi"]
        assert adapters(config) == {"rank": 16, "alpha": None, "target_modules": "all-linear"}
        other = compose(
            "config",
            overrides=[
                "student=e5_mistral",
                "data=mixture",
                "data.members=['data=fiqa','data=scifact student.dropout=0.1']",
            ],
        )
        with pytest.raises(InputError, match="has another student"):
            corpora(other)


def sentence_folder(transformer, folder, *after, **settings):
    modules = [Transformer(str(transformer), max_seq_length=32), *after]
    model = SentenceTransformer(modules=modules, device="cpu", **settings)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_prompts_of_the_folder_are_used_where_auto_says_so(decoder_folder, tmp_path, caplog):
    prompts = {"query": "Instruct: x\nQuery:", "passage": "text: "}
    folder = sentence_folder(decoder_folder, tmp_path, Pooling(16, "lasttoken"), prompts=prompts)
    with initialize_config_dir(CONF, version_base=None):
        overrides = ["student=custom", f"student.path={folder}", "student.pooling=lasttoken"]
        auto = compose("config", overrides=overrides)
        assert prefixes(auto) == {"query_prefix": prompts["query"], "passage_prefix": "text: "}
        own = compose("config", overrides=[*overrides, "student.query_prefix='Instruct: y'"])
    decoder(folder, **prefixes(auto))
    decoder(folder, **prefixes(own))  # an instruction too
    assert not caplog.messages
    decoder(folder)
    assert [message.partition(", but")[0] for message in caplog.messages] == [
        "student.query_prefix=''",
        "student.passage_prefix=''",
    ]


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_similarities(encoder_folder, tmp_path, caplog, similarity):
    folder = sentence_folder(encoder_folder, tmp_path, Pooling(16, "mean"), similarity_fn_name=similarity)
    if similarity == "euclidean":
        with pytest.raises(
            InputError, match=rf"^student.path={folder}: its embeddings are compared by euclidean"
        ):
            BiEncoder.load(str(folder), pooling="mean", passage_length=32)
        return
    BiEncoder.load(str(folder), pooling="mean", passage_length=32)
    assert [message.split()[1:5] for message in caplog.messages] == (
        [["compares", "by", "dot", "products"]] if similarity == "dot" else []
    )


def test_linear_layers_after_the_pooling(encoder_folder, tmp_path):
    """As EmbeddingGemma's; also in our own folder of it."""
    after = [Dense(16, 24, bias=False, activation_function=nn.Identity()), Dense(24, 8), Normalize()]
    folder = sentence_folder(encoder_folder, tmp_path / "theirs", Pooling(16, "mean"), *after)
    student = BiEncoder.load(str(folder), pooling="mean", passage_length=32)
    before = Counted()
    before.path = folder
    assert student.dimension == 8 == dimension(before)  # known before it is loaded
    ours = embedded(student, TEXTS, 32, "", tmp_path / "ours")
    np.testing.assert_allclose(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), ours, atol=1e-5)
    export(student, tmp_path / "model", "")
    again = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_document(TEXTS)
    np.testing.assert_allclose(again, ours, atol=1e-5)
    loaded = BiEncoder.load(str(tmp_path / "model"), pooling="mean", passage_length=32)
    assert loaded.state_dict().keys() == student.state_dict().keys()
    shutil.copytree(tmp_path / "model", tmp_path / "odd")
    config = json.loads((tmp_path / "odd/2_Dense/config.json").read_text())
    for change in ({"activation_function": "os.system"}, {"module_input_name": "token_embeddings"}):
        (tmp_path / "odd/2_Dense/config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match="2_Dense/config.json asks for a layer that is not known here"):
            BiEncoder.load(str(tmp_path / "odd"), pooling="mean", passage_length=32)


def test_weights_in_bfloat16(decoder_folder, tmp_path):
    student, whole = decoder(decoder_folder, dtype="bfloat16"), decoder(decoder_folder)
    assert {of.dtype for of in student.transformer.parameters()} == {torch.bfloat16}
    found = embedded(student, TEXTS, 32, "", tmp_path / "bf16")
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, embedded(whole, TEXTS, 32, "", tmp_path / "whole"), atol=0.05)
    export(student, tmp_path / "model", "")
    again = decoder(tmp_path / "model", dtype="bfloat16")
    np.testing.assert_array_equal(embedded(again, TEXTS, 32, "", tmp_path / "again"), found)
    with pytest.raises(InputError, match="student.dtype=float16 is unknown; use float32 or bfloat16"):
        decoder(decoder_folder, dtype="float16")


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_a_decoder_s_file_that_is_right_for_some_sizes_only_is_refused(decoder_folder, tmp_path, engine):
    with pytest.raises(
        InputError, match=rf"cannot be exported for student.engine={engine}: .*student.engine=torch$"
    ):
        export_to(engine, decoder(decoder_folder), tmp_path)


def a_student(kind: str) -> BiEncoder:
    torch.manual_seed(0)
    if kind == "decoder":
        return BiEncoder(tiny_decoder(), None, pooling="lasttoken", passage_length=32).train()
    return BiEncoder(
        BertModel(
            tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), add_pooling_layer=False
        ),
        None,
        pooling="mean",
        passage_length=32,
    ).train()


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("graph_tokens", [0, 10**6])
def test_recomputed_activations_have_the_same_gradients(kind, graph_tokens):
    texts, loss = problem()
    found = []
    for recompute in (False, True):
        model = a_student(kind)
        calls = []
        model.transformer.get_input_embeddings().register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        if recompute:
            model.recompute_activations()
            assert model.transformer.is_gradient_checkpointing
        backward(model, texts, loss, chunk_tokens=40, graph_tokens=graph_tokens)
        found.append(gradients(model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def adapted(kind: str) -> BiEncoder:
    model = a_student(kind)
    adapt(model, rank=2)
    for name, of in model.named_parameters():  # as after some steps: B is no longer 0
        if "lora_B" in name:
            nn.init.normal_(of, std=0.1)
    return model


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
@pytest.mark.parametrize("graph_tokens", [0, 100, 10**6])
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_adapters_equal_the_plain_full_batch(kind, graph_tokens, recompute):
    texts, loss = problem()
    value, expected = plain_gradients(adapted(kind), texts, loss)
    model = adapted(kind)
    if recompute:
        model.recompute_activations()
    terms = backward(model, texts, loss, chunk_tokens=40, graph_tokens=graph_tokens)
    assert terms["loss"].item() == pytest.approx(value.item(), rel=1e-5)
    assert relative_error(gradients(model), expected) < 1e-5
    trained = {name for name, of in model.named_parameters() if of.grad is not None}
    layers = 2 * (7 if kind == "decoder" else 6)
    assert len(trained) == 2 * layers and all("lora_" in name for name in trained)


@torch.no_grad()
def test_adapters_alone_are_saved_and_merging_changes_no_embedding(decoder_folder, tmp_path):
    before = decoder(decoder_folder)
    student = decoder(decoder_folder)
    adapt(student, rank=2)
    inputs = Texts(6).batch(np.arange(6))
    torch.testing.assert_close(student(**inputs), before(**inputs), atol=0, rtol=0)
    for name, of in student.named_parameters():
        if of.requires_grad:
            nn.init.normal_(of, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    state = student.state_dict()
    assert state and all("lora_" in name for name in state)
    wide = sum(of.numel() for name, of in student.named_parameters() if "lora_" in name)
    save_model(student, str(tmp_path / "best.safetensors"))
    assert sum(of.numel() for of in load_file(tmp_path / "best.safetensors").values()) == wide
    torch.manual_seed(9)  # other adapters before those of the file are read
    other = decoder(decoder_folder)
    adapt(other, rank=2)
    load_model(other, tmp_path / "best.safetensors")
    found = student(**inputs)
    assert (found - before(**inputs)).abs().max() > 0.05
    torch.testing.assert_close(other(**inputs), found, atol=0, rtol=0)
    nn.Sequential(other).load_state_dict({f"0.{name}": of for name, of in state.items()})  # part of a whole
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.Sequential(other).load_state_dict({f"0.{name}": of for name, of in list(state.items())[1:]})

    merge(student, tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").stat().st_size < wide * 4 + 8_000
    torch.testing.assert_close(student(**inputs), found, atol=1e-6, rtol=0)
    assert student.state_dict().keys() == before.state_dict().keys()
    export(student, tmp_path / "model", "")
    again = decoder(tmp_path / "model")
    torch.testing.assert_close(again(**inputs), found, atol=1e-6, rtol=0)
    theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(decoder_folder), tmp_path / "adapter").eval()
    last = inputs["attention_mask"].sum(1) - 1
    hidden = theirs(**inputs).last_hidden_state[torch.arange(6), last]
    torch.testing.assert_close(nn.functional.normalize(hidden, dim=-1), found, atol=1e-6, rtol=0)


def test_adapters_of_bfloat16_weights_are_float32(decoder_folder):
    student = decoder(decoder_folder, dtype="bfloat16")
    adapt(student, rank=2, alpha=2, target_modules=["q_proj", "v_proj"])
    trained = {name: of for name, of in student.named_parameters() if of.requires_grad}
    assert {of.dtype for of in trained.values()} == {torch.float32} and len(trained) == 2 * 2 * 2
    student(**Texts(3).batch(np.arange(3))).sum().backward()
    assert all(of.grad is not None for of in trained.values())


def test_no_such_layers(decoder_folder):
    with pytest.raises(InputError, match=r"^student.lora.target_modules=\['query'\]: "):
        adapt(decoder(decoder_folder), rank=2, target_modules=["query"])
