"""The student's embeddings by OpenVINO or ONNX Runtime, where they are faster than torch: on CPUs."""

import contextlib
import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from torch import Tensor

from dense_retrieval.onednn import fast_linears
from dense_retrieval.records import InputError
from dense_retrieval.stage import Counts, Folder, stage
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import Tokens

Inputs = dict[str, Tensor]  # padded input_ids and attention_mask (B, T)
Forward = Callable[[Iterable[Inputs]], Iterator[np.ndarray]]  # of each batch its embeddings (B, D) float32

# engine -> the packages that it needs
PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "openvino": ("openvino",),
    "openvino_int8": ("openvino", "nncf"),
    "onnx": ("onnx", "onnxruntime"),
    "onnx_int8": ("onnx", "onnxruntime"),
}
_CALIBRATION_TEXTS = 100


def require(engine: str) -> None:
    """Raise InputError where there is no such engine, or a package is missing."""
    if engine not in PACKAGES:
        raise InputError(f"student.engine={engine} is unknown; use auto, {', '.join(PACKAGES)}")
    missing = [name for name in PACKAGES[engine] if find_spec(name) is None]
    if missing:
        extra = engine.partition("_")[0]
        raise InputError(
            f"student.engine={engine} needs {' and '.join(missing)}: pip install 'dense_retrieval[{extra}]'"
        )


def by_torch(model: BiEncoder, device: str = "cpu", bf16: bool = False) -> Forward:
    """The model itself.

    Args:
        bf16: compute under bfloat16 autocast.
    """
    model = model.to(device).eval()
    on = torch.device(device).type

    @torch.inference_mode()
    def forward(batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        with torch.autocast(on, torch.bfloat16, enabled=bf16), fast_linears(model):
            for batch in batches:
                yield model(**{k: v.to(device) for k, v in batch.items()}).float().cpu().numpy()

    return forward


@stage(lambda folder: folder)
def exported(
    folder: Path,
    weights: Folder[Path],
    calibration: Folder[Tokens] | None,
    /,
    *,
    student: dict[str, Any],
    engine: str,
) -> Counts:
    """The student, its pooling and normalisation included, as a file of another engine.

    Args:
        calibration: passages, from which the ranges of int8 activations are taken; for ``openvino_int8``.
        student: ``_target_`` and arguments of the :class:`BiEncoder`, but for its weights.
    """
    require(engine)
    model = instantiate(student, path=str(weights.path))
    export_to(engine, model, folder, calibration.load() if calibration else None)
    return {"bytes": sum(file.stat().st_size for file in folder.iterdir())}


def export_to(engine: str, model: BiEncoder, folder: Path, calibration: Tokens | None = None) -> None:
    """Write ``model.xml`` and ``model.bin``, or ``model.onnx``: ``input_ids``, ``attention_mask`` -> embeddings.

    Raises:
        InputError: the model cannot be exported.
    """
    name, _, int8 = engine.partition("_")
    write = {"openvino": _write_openvino, "onnx": _write_onnx}[name]
    try:
        with torch.no_grad(), _silent():
            write(model.cpu().eval(), folder, calibration, bool(int8))
    except Exception as error:  # a tracer or converter raises what it likes
        first = str(error).strip().partition("\n")[0][:200]
        raise InputError(
            f"student.path={model.path} cannot be exported for student.engine={engine}: {first}; "
            "use student.engine=torch"
        ) from error


def _write_openvino(model: BiEncoder, folder: Path, calibration: Tokens | None, int8: bool) -> None:
    import openvino

    converted = openvino.convert_model(model, example_input=_example())
    if int8:
        import nncf

        nncf.set_log_level(logging.ERROR)
        assert calibration is not None
        # int8 weights and activations, as sentence-transformers' export_static_quantized_openvino_model
        converted = nncf.quantize(
            converted,
            nncf.Dataset(list(_sample(calibration))),
            subset_size=_CALIBRATION_TEXTS,
            model_type=nncf.ModelType.TRANSFORMER,
        )
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _sample(tokens: Tokens) -> Iterator[dict[str, np.ndarray]]:
    """Some texts from all of the table, one a batch: nothing is padding."""
    rows = np.linspace(0, len(tokens) - 1, min(_CALIBRATION_TEXTS, len(tokens)), dtype=np.int64)
    for row in rows:
        yield {name: values.numpy() for name, values in tokens.batch([row]).items()}


def _write_onnx(model: BiEncoder, folder: Path, calibration: Tokens | None, int8: bool) -> None:
    file = folder / "model.onnx"
    axes = {0: "texts", 1: "tokens"}
    torch.onnx.export(
        model,
        tuple(_example().values()),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=["embeddings"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "embeddings": {0: "texts"}},
        opset_version=17,
        dynamo=False,  # the other exporter fixes the number of texts of some architectures
    )
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole = file.rename(folder / "float32.onnx")
        quantize_dynamic(
            whole, file, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, per_channel=True
        )
        whole.unlink()


def _example() -> Inputs:
    """Ragged, so that the mask is traced too."""
    ids = torch.ones(3, 8, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings of tracers and the bars of quantisers."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


def by_file(folder: Path, bf16: bool = False) -> Forward:
    """What :func:`export_to` wrote."""
    if (folder / "model.xml").exists():
        return _by_openvino(folder / "model.xml", bf16)
    return _by_onnx(folder / "model.onnx")


def _by_openvino(file: Path, bf16: bool) -> Forward:
    import openvino

    compiled = openvino.Core().compile_model(
        file,
        "CPU",
        {
            "PERFORMANCE_HINT": "THROUGHPUT",  # streams of few threads, each with a batch of its own
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # other processes have cores too
        },
    )
    requests = [
        compiled.create_infer_request()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]

    def forward(batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        free, busy = deque(requests), deque[tuple[Any, Inputs]]()
        for batch in batches:
            if not free:
                yield finish(free, busy)
            request = free.popleft()
            request.start_async({k: v.numpy() for k, v in batch.items()}, share_inputs=True)
            busy.append((request, batch))  # whose memory the request reads
        while busy:
            yield finish(free, busy)

    def finish(free: deque[Any], busy: deque[tuple[Any, Inputs]]) -> np.ndarray:
        request, _ = busy.popleft()
        request.wait()
        free.append(request)
        return request.get_output_tensor(0).data.copy()

    return forward


def _by_onnx(file: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield session.run(None, {k: v.numpy() for k, v in batch.items()})[0]

    return forward
