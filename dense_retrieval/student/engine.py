"""The student's embeddings by OpenVINO or ONNX Runtime, where they are faster than torch: on CPUs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dense_retrieval.onednn import fast_linears
from dense_retrieval.records import InputError
from dense_retrieval.student.bi_encoder import BiEncoder

Inputs = dict[str, Tensor]  # padded input_ids and attention_mask (B, T)
Forward = Callable[[Iterable[Inputs]], Iterator[np.ndarray]]  # of each batch its embeddings (B, D) float32

# engine -> the packages that it needs
PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "openvino": ("openvino",),
    "openvino_bf16": ("openvino",),
    "openvino_int8": ("openvino", "nncf"),
    "onnx": ("onnx", "onnxruntime"),
    "onnx_int8": ("onnx", "onnxruntime"),
}


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


def by_file(folder: Path, bf16: bool = False) -> Forward:
    """What :func:`~dense_retrieval.student.export_engine.export_to` wrote."""
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
