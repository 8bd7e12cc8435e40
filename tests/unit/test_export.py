"""A student as files of other engines, in sentence-transformers' layout; what uploading does."""

import json

import numpy as np
import pytest
import torch
from conftest import WORDS
from sentence_transformers import SentenceTransformer

from dense_retrieval import export as command
from dense_retrieval import parity
from dense_retrieval.evaluation import agreement
from dense_retrieval.parity import Asked
from dense_retrieval.records import PASSAGES, CandidateList, InputError, Qrels, table
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.engine import PACKAGES, by_onnx, by_openvino
from dense_retrieval.student.export import export
from dense_retrieval.student.export_engine import export_to
from dense_retrieval.student.tokens import Tokens, tokenize


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 31))) for _ in range(40)]


@pytest.fixture(scope="module")
def student(encoder_folder) -> BiEncoder:
    return BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64, query_prefix="a ")


@pytest.mark.parametrize("engine", command.FILES)
def test_sentence_transformers_pools_the_file_s_hidden_states(student, texts, tmp_path, engine, monkeypatch):
    """As its backends do, with optimum: the output of this name takes the place of the transformer's. The first
    output is pooled already."""
    for package in PACKAGES[engine]:
        pytest.importorskip(package)
    export(student, tmp_path, "# card")
    tokenize(texts, student.tokenizer, 64, "", tmp_path)
    file = tmp_path / command.FILES[engine]
    file.parent.mkdir()
    export_to(engine, student, file.parent, Tokens.load(tmp_path), stem=file.stem, hidden_states=True)
    assert file.is_file() and (engine.startswith("onnx") or file.with_suffix(".bin").is_file())
    model = SentenceTransformer(str(tmp_path), device="cpu")
    tokens = model.tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    hidden = _hidden_states(file, {name: values.numpy() for name, values in inputs.items()})
    pooled = model[2](model[1](inputs | {"token_embeddings": torch.from_numpy(hidden)}))["sentence_embedding"]
    forward = (by_openvino if engine.startswith("openvino") else by_onnx)(file)
    (ours,) = forward([inputs])
    with torch.inference_mode():
        exact = student.cpu().eval()(**inputs).numpy()
    least = 0.98 if engine.endswith("int8") else 0.999999
    for other in (pooled.numpy(), ours, model.encode(texts)):
        assert (other * exact).sum(1).min() > least
    np.testing.assert_allclose(pooled, ours, atol=2e-2 if engine.endswith("int8") else 1e-4)


def _hidden_states(file, inputs) -> np.ndarray:
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().compile_model(file, "CPU")
        assert {of.get_any_name() for of in model.inputs} == {*inputs}
        return model(inputs)["last_hidden_state"]
    import onnxruntime

    session = onnxruntime.InferenceSession(file)
    assert {of.name for of in session.get_inputs()} == {*inputs}
    return session.run(["last_hidden_state"], inputs)[0]


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_sentence_transformers_backends_open_it(student, texts, tmp_path, backend):
    """Where there is an optimum of the transformers installed."""
    pytest.importorskip("optimum.onnxruntime" if backend == "onnx" else "optimum.intel.openvino")
    export(student, tmp_path, "# card")
    file = tmp_path / command.FILES[backend]
    file.parent.mkdir()
    export_to(backend, student, file.parent, stem=file.stem, hidden_states=True)
    model = SentenceTransformer(str(tmp_path), device="cpu", backend=backend)
    ours = SentenceTransformer(str(tmp_path), device="cpu")
    for name in ("encode_query", "encode_document"):
        np.testing.assert_allclose(getattr(model, name)(texts), getattr(ours, name)(texts), atol=1e-5)


def test_one_limit_for_sentence_transformers_before_6(student, tmp_path):
    export(student, tmp_path / "model", "# card of this folder")
    before = json.loads((tmp_path / "model/sentence_bert_config.json").read_text())
    command._copy_model(tmp_path / "model", tmp_path / "export")
    lengths = json.loads((tmp_path / "export/sentence_bert_config.json").read_text())
    assert lengths == {"max_seq_length": before["max_seq_length"]}
    assert json.loads((tmp_path / "model/sentence_bert_config.json").read_text()) == before
    command._copy_model(tmp_path / "model", tmp_path / "export")  # the same model again
    with pytest.raises(InputError, match="holds something else: give another output="):
        command._copy_model(tmp_path / "model", tmp_path)
    (tmp_path / "export/model.safetensors").unlink()
    (tmp_path / "export/model.safetensors").write_bytes(b"of another")
    with pytest.raises(InputError, match="holds another model than"):
        command._copy_model(tmp_path / "model", tmp_path / "export")


def test_the_readme_tells_of_each_file(tmp_path):
    for name in ("model", "export"):
        (tmp_path / name).mkdir()
    (tmp_path / "model/README.md").write_text('# card\n\nSentenceTransformer("this folder")\n')
    known = {command.FILES[engine]: {"line": f"cosine of {engine}"} for engine in command.FILES}
    (tmp_path / "export/parity.json").write_text(json.dumps(known))
    for _ in range(2):
        command._write_readme(tmp_path / "model", tmp_path / "export", "me/kale")
        text = (tmp_path / "export/README.md").read_text()
        assert text.count("## On CPUs") == 1 and "this folder" not in text and text.startswith("# card")
    assert 'SentenceTransformer("me/kale", backend="onnx")' in text and "cosine of openvino_int8" in text
    assert 'backend="openvino", model_kwargs={"file_name": "openvino_model_qint8_quantized.xml"})' in text


class Hub:
    """Stands in for huggingface_hub's HfApi."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.calls = fault, []

    def create_repo(self, name, **settings):
        if self.fault:
            raise self.fault
        self.calls.append(("create", name, settings))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, **settings):
        self.calls.append(("upload", settings["repo_id"], settings))


def test_uploading_makes_a_private_repository(tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    assert command._push(tmp_path, "me/kale") == "https://huggingface.co/me/kale"
    (created, uploaded) = hub.calls
    assert created == ("create", "me/kale", {"private": True, "exist_ok": True})
    assert uploaded[:2] == ("upload", "me/kale") and uploaded[2]["folder_path"] == tmp_path
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(OSError("no token\nlong story")))
    with pytest.raises(
        InputError, match="push=me/kale: the hub does not take it .OSError: no token.; log in"
    ):
        command._push(tmp_path, "me/kale")


def test_parity_by_hand():
    """Two queries of twelve passages: the first as ours, the second without our first and with two swapped."""
    ours = np.stack([np.arange(12), np.arange(12)])
    others = ours.copy()
    others[1] = [2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 0, 11]
    scores = np.linspace(1, 0, 12, dtype=np.float32)[None].repeat(2, 0)
    moved = scores.copy()
    moved[1, 3] -= 0.25
    qrels = Qrels(np.array([0, 1]), np.array([0, 0]), np.array([1, 1]))
    found = agreement.parity(CandidateList(ours, scores), CandidateList(others, moved), qrels)
    assert found.common == pytest.approx((1 + 0.9) / 2) and found.same == 0.5
    assert found.scores == pytest.approx(0.25, abs=1e-6)
    assert found.ndcg == 1.0 and found.lost == 0.5 and found.queries == 2
    assert "95.00% of the ten best in common" in str(found) and "0.5000 against 1.0000 (0.5000 lost)" in str(
        found
    )


def test_parity_of_lists_shorter_than_ten():
    ours = CandidateList(np.array([[1, 0, -1]]), np.array([[0.5, 0.25, -np.inf]], dtype=np.float32))
    found = agreement.parity(ours, ours, Qrels(np.array([0]), np.array([0]), np.array([1])))
    assert (found.common, found.same, found.scores, found.lost) == (1.0, 1.0, 0.0, 0.0)


def test_of_many_passages_those_judged_or_found_are_embedded_again(monkeypatch):
    """60 passages on a line, queries at 3 and 40, of which the second is a passage itself."""
    passages = np.stack([np.cos(np.arange(60) / 40), np.sin(np.arange(60) / 40)], 1).astype(np.float32)
    ids = [f"p{i}" for i in range(60)]
    corpus = table({"id": ids, "title": [""] * 60, "text": ids}, PASSAGES)
    qrels = Qrels(np.array([0, 1]), np.array([59, -1]), np.array([1, 1]))
    rows = np.array([0, 1])
    asked = Asked(rows, qrels, passages[[3, 40]], passages, {}, corpus, ["q0", "p40"])
    assert asked.pool.tolist() == list(range(60))
    monkeypatch.setattr(parity, "_POOL", 59)
    assert asked.pool.tolist() == [*range(20), *range(30, 40), *range(41, 51), 59]
    ranked = asked.ranking(asked.queries, passages[asked.pool], asked.pool).passages
    assert ranked.shape == (2, parity.DEPTH) and ranked[0, 0] == 3
    assert 40 not in ranked[1] and set(ranked[1, :2].tolist()) == {39, 41}
