"""The command that makes a teacher."""

import json
import os
import subprocess
import sys

import numpy as np
import torch
from conftest import WORDS, tiny_config, tiny_tokenizer, write_beir
from transformers import BertModel

from dense_retrieval.teacher.sequence_classifier import SequenceClassifier


def train(folder, *overrides) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "dense_retrieval.teacher.train", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )


def test_a_teacher_from_titles_and_claims(tmp_path):
    encoder_folder = tmp_path / "encoder"
    torch.manual_seed(0)
    BertModel(tiny_config(max_position_embeddings=128)).save_pretrained(encoder_folder)
    tiny_tokenizer().save_pretrained(encoder_folder)
    rng = np.random.default_rng(0)
    words = [[WORDS[5 + i % 15], *rng.choice(WORDS[:5], 6)] for i in range(90)]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    write_beir(corpus, [(text[0], " ".join(text)) for text in words], ["light"] * 5, {"test": range(5)})
    claims = [
        {"passage_id": f"p{i}", "querytype": "claim", "text": f"the {w[0]} is {w[0]}"}
        for i, w in enumerate(words)
    ]
    (tmp_path / "claims.jsonl").write_text("\n".join(map(json.dumps, claims)))
    settings = [f"corpus={corpus}", f"base={encoder_folder}", "pairs=[title,claim]", "file=claims.jsonl"]
    settings += ["negatives_each=1", "depth=8", "rank=8", "learning_rate=0.01", "max_length=32", "queries=60"]
    done = train(tmp_path, *settings, "output=adapter")
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "adapter/training.json").read_text())
    assert len(report["loss"]) == 4 and 0 <= report["dev_ndcg@10_reranked"] <= 1
    assert all(path.is_file() for path in (tmp_path / "adapter").iterdir())
    teacher = SequenceClassifier.load(str(encoder_folder), adapter=str(tmp_path / "adapter"), max_length=32)
    scores = teacher.score(["bird", "bird"], ["bird of the", "rock of the"])
    assert np.isfinite(scores).all() and scores[0] != scores[1]
