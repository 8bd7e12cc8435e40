"""Tiny models built in code; no test needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import faulthandler
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.faulthandler import fault_handler_stderr_fd_key
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "is",
    "cell",
    "star",
    "planet",
    "acid",
    "bird",
    "river",
    "energy",
    "light",
    "heat",
    "mass",
    "ocean",
    "rock",
    "gas",
    "tree",
    "root",
]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A crash says where: Lightning, at the end of each training, takes pytest's handler of signals away."""
    faulthandler.disable()
    faulthandler.enable(item.config.stash[fault_handler_stderr_fd_key])


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def tiny_config(**changes) -> BertConfig:
    settings = {
        "vocab_size": 4 + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    return BertConfig(**(settings | changes))


def decoder_tokenizer(end: str | None = "<|endoftext|>") -> PreTrainedTokenizerFast:
    """Of words. As Qwen3-Embedding's another token than its eos_token ends each text; or none."""
    names = ["<|endoftext|>", "<|im_end|>", "[UNK]", *WORDS, "Instruct", "Query", ":"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        ends = [(end, names.index(end))]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", end], pair=["$A", end, "$B:1", f"{end}:1"], special_tokens=ends
        )
    tokens = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **tokens)


def tiny_decoder() -> Qwen3Model:
    """A random two-layer Qwen3."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    return Qwen3Model(Qwen3Config(vocab_size=6 + len(WORDS), initializer_range=0.2, **sizes, **heads))


def with_weights(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a model folder whose weights, by name, are changed in place."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with its tokenizer, as transformers saves them."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen3 with its tokenizer, which ends each text, as transformers saves them."""
    folder = tmp_path_factory.mktemp("decoder")
    tiny_decoder().save_pretrained(folder)
    decoder_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT sequence classifier with one output."""
    folder = tmp_path_factory.mktemp("cross_encoder")
    torch.manual_seed(1)
    BertForSequenceClassification(tiny_config(num_labels=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_beir(
    folder: Path, passages: list[tuple[str, str]], queries: list[str], splits: dict[str, range]
) -> None:
    """A folder in BEIR's layout: passages of title and text, of which query i finds the i-th."""
    rows = [{"_id": f"p{i}", "title": title, "text": text} for i, (title, text) in enumerate(passages)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [{"_id": f"q{i}", "text": text} for i, text in enumerate(queries)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "qrels").mkdir()
    for split, asked in splits.items():
        judged = "".join(f"q{i}\tp{i}\t1\n" for i in asked)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """40 passages of random words; test and synthetic queries are a passage's first words."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("corpus")
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(40)]
    queries = [" ".join(text.split()[:4]) for text in texts[:20]]
    write_beir(folder, [("", text) for text in texts], queries, {"test": range(10), "train": range(10, 20)})
    synthetic = [
        {
            "passage_id": f"p{i}",
            "querytype": kind,
            "text": " ".join(t.split()[start : start + 5]) + "?" * start,
        }
        for i, t in enumerate(texts)
        for start, kind in enumerate(["claim", "question"])
    ]
    (folder / "synthetic.jsonl").write_text("\n".join(map(json.dumps, synthetic)))
    return folder


@pytest.fixture(scope="session")
def command(corpus, encoder_folder, cross_encoder_folder) -> list[str]:
    """The overrides that make a run tiny."""
    return [
        "data=beir",
        f"data.path={corpus}",
        "data.heldout=4",
        "querytype=claim",
        "generator=files",
        f"generator.path={corpus}/synthetic.jsonl",
        "student=custom",
        f"student.path={encoder_folder}",
        "student.pooling=mean",
        "student.passage_length=32",
        "teacher=custom",
        f"teacher.path={cross_encoder_folder}",
        "teacher.max_length=48",
        "groups.list_size=4",
        "groups.teacher_top1=false",
        "groups.source_top_k=40",
        "trainer.batch_size=8",
        "trainer.max_epochs=2",
        "trainer.learning_rate=1e-3",
        "evaluation.headroom_queries=5",
        "evaluation.heldout_types=[claim,question]",
    ]


@pytest.fixture(scope="session")
def finished(run, command, tmp_path_factory) -> Path:
    """A folder with the tiny run, in ``runs/first``, and its cache. Whoever writes there uses :func:`project`."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, *command, "hydra.run.dir=runs/first")
    return folder


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory) -> Path:
    """A module's own copy of the tiny run's folder."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess]:
    return _run


def _run(folder: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    process = subprocess.run(
        [sys.executable, "-m", "dense_retrieval.run", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert not check or process.returncode == 0, process.stderr[-3000:]
    return process
