"""The student's embeddings by other engines than torch, against torch's."""

import ctypes
import gc
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS
from hydra import compose, initialize_config_dir

from dense_retrieval.config import CONF
from dense_retrieval.models import engine_of
from dense_retrieval.records import InputError
from dense_retrieval.student import engine
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.export_engine import export_to
from dense_retrieval.student.fastest import _speeds, fastest
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.views import corpus_of, embedded, untuned


@pytest.fixture(scope="module")
def tokens(encoder_folder, tmp_path_factory) -> Tokens:
    """60 texts of 1 to 30 words."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("tokens")
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 31))) for _ in range(60)]
    tokenize(
        texts, BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64).tokenizer, 64, "", folder
    )
    return Tokens.load(folder)


def embeddings_of(student: BiEncoder, tokens: Tokens, folder, **settings) -> np.ndarray:
    folder.mkdir()
    encode(student, tokens, folder, **settings)
    return np.load(folder / "embeddings.npy")


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("name", [name for name in engine.PACKAGES if name != "torch"])
def test_another_engine_gives_torch_s_embeddings(encoder_folder, tokens, tmp_path, name, pooling):
    """Of ragged batches, of batches without padding, and of one text."""
    for package in engine.PACKAGES[name]:
        pytest.importorskip(package)
    student = BiEncoder.load(str(encoder_folder), pooling=pooling, passage_length=64)
    export_to(name, student, tmp_path, tokens)
    for max_tokens in (1, 200, 10_000):
        forward = engine.by_file(tmp_path, name.endswith("bf16"))
        ours = embeddings_of(
            student, tokens, tmp_path / f"ours {max_tokens}", forward=forward, max_tokens=max_tokens
        )
        torch_s = embeddings_of(student, tokens, tmp_path / f"torch {max_tokens}", max_tokens=max_tokens)
        cosines = (ours * torch_s).sum(1)
        assert cosines.min() > {"int8": 0.98, "bf16": 0.999}.get(name.partition("_")[2], 0.999999)


def test_signals_are_survived_after_models_are_gone(encoder_folder, tokens, tmp_path):
    """OpenVINO gives the thread another stack for signals, and takes it back in the wrong order: Ctrl-C was a crash."""
    pytest.importorskip("openvino")
    student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64)
    export_to("openvino", student, tmp_path, tokens)
    program = f"""
import gc, os, signal, sys
from pathlib import Path
from dense_retrieval.student.engine import by_file

signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
first = by_file(Path({str(tmp_path)!r}))
second = by_file(Path({str(tmp_path)!r}))
for forward in ("first", "second"):
    del globals()[forward]
    gc.collect()
    os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\nheard\n"), done.stderr


def test_a_batch_stays_in_memory_until_openvino_has_read_it(encoder_folder, tokens, tmp_path, monkeypatch):
    """Also where the embeddings are left half read."""
    openvino = pytest.importorskip("openvino")
    student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64)
    export_to("openvino", student, tmp_path, tokens)
    begun, waited = [], []
    start, wait = openvino.InferRequest.start_async, openvino.InferRequest.wait
    monkeypatch.setattr(
        openvino.InferRequest, "start_async", lambda self, *a, **k: begun.append(self) or start(self, *a, **k)
    )
    monkeypatch.setattr(openvino.InferRequest, "wait", lambda self: waited.append(self) or wait(self))
    embedded = engine.by_file(tmp_path)(tokens.batch(np.array([row])) for row in range(60))
    next(embedded)
    embedded.close()
    assert 1 <= len(begun) < 60 and Counter(map(id, waited)) == Counter(map(id, begun))


def test_a_model_that_cannot_be_traced_is_refused(encoder_folder, tmp_path):
    pytest.importorskip("openvino")
    student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64)
    student.forward = lambda **_: (_ for _ in ()).throw(RuntimeError("code of its own\nand more"))
    with pytest.raises(
        InputError, match="cannot be exported for student.engine=openvino: .*; use student.engine=torch"
    ):
        export_to("openvino", student, tmp_path)


def test_a_quantiser_leaves_the_stack_of_signals_in_place(encoder_folder, tokens, tmp_path):
    for name in ("openvino_int8", "openvino_int8", "openvino"):
        pytest.importorskip("nncf")
        student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64)
        export_to(name, student, tmp_path, tokens)
        gc.collect()
        assert _signal_stack_is_there()


def _signal_stack_is_there() -> bool:
    """Of this thread, on Linux, which would end the process rather than say so."""

    class Stack(ctypes.Structure):
        _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    first, last = stack.start or 0, (stack.start or 0) + stack.size - 1
    mapped = [any(int(a, 16) <= byte < int(b, 16) for a, b in ranges) for byte in (first, last)]
    return stack.flags == 2 or all(mapped)  # 2: it has none


@pytest.mark.parametrize("name", ["openvino_int8", "onnx_int8"])
def test_an_export_leaves_the_logging_as_it_was(encoder_folder, tokens, tmp_path, name, caplog):
    for package in engine.PACKAGES[name]:
        pytest.importorskip(package)
    before = logging.root.level, [handler.level for handler in logging.root.handlers], logging.root.filters[:]
    student = BiEncoder.load(str(encoder_folder), pooling="cls", passage_length=64)
    export_to(name, student, tmp_path, tokens)
    after = logging.root.level, [handler.level for handler in logging.root.handlers], logging.root.filters[:]
    assert after == before
    logging.getLogger("dense_retrieval").warning("heard")
    assert caplog.messages[-1] == "heard"


def test_a_missing_package_or_engine_is_named(monkeypatch):
    with pytest.raises(InputError, match="student.engine=tpu is unknown; use auto, torch"):
        engine.require("tpu")
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs openvino and nncf: pip install 'dense_retrieval\[openvino\]'"
    ):
        engine.require("openvino_int8")


def test_the_fastest_engine_is_measured_once(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    measured = []
    monkeypatch.setattr(
        "dense_retrieval.student.fastest._speeds", lambda names, _: measured.append(names) or SPEEDS
    )
    for speed, expected in ((1.04, "torch"), (1.06, "openvino")):
        SPEEDS = {"torch": 1.0, "openvino": speed}
        fastest.cache_clear()
        assert fastest(tmp_path / expected, False) == expected
        fastest.cache_clear()
        SPEEDS = {"torch": 9.0, "openvino": speed}
        assert fastest(tmp_path / expected, False) == expected
    assert (
        len(measured) == 2 and "openvino" in measured[0] and not any("int8" in name for name in measured[0])
    )


def test_the_probe_measures_every_engine():
    pytest.importorskip("openvino")
    assert all(speed > 0 for speed in _speeds(["openvino"], False).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.engine=onnx", "precision=bf16-mixed"], "computes in float32: use precision=32-true"),
        (["student.engine=tpu"], "student.engine=tpu is unknown"),
    ],
)
def test_what_an_engine_cannot_compute_is_refused(settings, message):
    pytest.importorskip("onnxruntime")
    with initialize_config_dir(CONF, version_base=None), pytest.raises(InputError, match=message):
        engine_of(compose("config", overrides=settings))


def test_torch_is_the_engine_that_keys_do_not_name(monkeypatch, tmp_path):
    with initialize_config_dir(CONF, version_base=None):
        usual = compose("config", overrides=[f"cache_dir={tmp_path}"])
        auto = compose("config", overrides=[f"cache_dir={tmp_path}", "student.engine=auto"])
    keys = {}
    for name, config, found in (("torch", usual, ""), ("auto", auto, "torch"), ("onnx", auto, "onnx")):
        monkeypatch.setattr("dense_retrieval.student.fastest.fastest", lambda *_, found=found: found)
        keys[name] = embedded(config, corpus_of(config), "passages", untuned(config)).made_from
    assert keys["torch"] == keys["auto"]
    assert "engine" not in keys["torch"]["inputs"] and "engine" not in keys["torch"]["settings"]["student"]
    assert keys["onnx"]["inputs"].pop("engine").startswith("exported-")
    assert keys["onnx"] == keys["torch"]
