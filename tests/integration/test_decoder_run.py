"""A decoder through the whole chain: last-token pooling, the corpus's instruction, adapters."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import Tokens

INSTRUCTION = "Instruct: Given a star, find its planet\nQuery: "


@pytest.fixture(scope="module")
def overrides(command, decoder_folder) -> list[str]:
    kept = [of for of in command if not of.startswith(("student.path", "student.pooling", "evaluation."))]
    return [
        *kept,
        f"student.path={decoder_folder}",
        "student.pooling=lasttoken",
        "data.task='Given a star, find its planet'",
        "student.query_prefix='Instruct: ${data.task}\nQuery: '",
        "student.lora.rank=2",
        "groups.dev_fraction=0",  # the last epoch's weights are kept
        "trainer.learning_rate=1e-2",
        "evaluation.headroom_queries=2",
        "logger=none",
        "hydra.run.dir=runs/decoder",
    ]


@pytest.fixture(scope="module")
def folder(run, overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder_run")
    run(folder, *overrides)
    return folder


def artifact(folder, stage: str):
    (found,) = (file.parent for file in (folder / "cache").glob(f"{stage}-*/stage.json"))
    return found


def test_the_exported_decoder_is_the_one_that_was_measured(folder, corpus, decoder_folder):
    model = SentenceTransformer(str(folder / "runs/decoder/model"), device="cpu")
    assert model.prompts["query"] == INSTRUCTION
    texts = [json.loads(line)["text"] for line in (corpus / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["text"] for line in (corpus / "queries.jsonl").read_text().splitlines()][:10]
    embedded = [np.load(file) for file in (folder / "cache").glob("embeddings-*/embeddings.npy")]
    ours = {len(of): [e for e in embedded if len(e) == len(of)] for of in embedded}
    # The tuned student's of all passages, and of the test queries, among the untuned one's.
    for found, texts_there in ((model.encode_document(texts), texts), (model.encode_query(asked), asked)):
        distances = [np.abs(found - one).max() for one in ours[len(texts_there)]]
        assert min(distances) < 1e-5 < 1e-2 < max(distances)


def test_padding_on_either_side_gives_the_tuned_decoder_s_embeddings(folder):
    student = BiEncoder.load(
        str(folder / "runs/decoder/model"), pooling="lasttoken", passage_length=32, query_prefix=INSTRUCTION
    ).eval()
    tokens = Tokens.load(next(file.parent for file in (folder / "cache").glob("tokens-*/index.npz")))
    assert {int(tokens[row][-1]) for row in range(len(tokens))} == {0}
    lengths = tokens.lengths
    rows = np.array([int(lengths.argmax()), int(lengths.argmin()), 0])
    right = tokens.batch(rows)
    left = {name: torch.zeros_like(of) for name, of in right.items()}
    for number, row in enumerate(rows):
        for name, of in right.items():
            left[name][number, -lengths[row] :] = of[number, : lengths[row]]
    with torch.no_grad():
        torch.testing.assert_close(student(**left), student(**right), atol=1e-6, rtol=0)


def test_adapters_alone_are_trained_and_kept_beside_the_model(folder, decoder_folder):
    training = artifact(folder, "training")
    adapters = load_file(training / "adapter/adapter_model.safetensors")
    assert all(".lora_" in name for name in adapters)
    assert any(of.abs().max() > 0 for name, of in adapters.items() if "lora_B" in name)
    untuned, tuned = (
        load_file(decoder_folder / "model.safetensors"),
        load_file(training / "model/model.safetensors"),
    )
    changed = {name for name in tuned if not torch.equal(tuned[name], untuned[name])}
    adapted = {re.sub(r"base_model\.model\.(.*)\.lora_A\.weight", r"\1.weight", name) for name in adapters}
    assert changed and changed <= adapted


def test_recomputing_activations_trains_nothing_anew(run, folder, overrides):
    again = [*overrides[:-1], "hydra.run.dir=runs/again", "student.gradient_checkpointing=true"]
    assert "built in" not in run(folder, *again).stdout
