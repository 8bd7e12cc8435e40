"""The student's embeddings by OpenVINO or ONNX Runtime, where they are faster than torch: on CPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dense_retrieval.records import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from dense_retrieval.student.bi_encoder import BiEncoder

Inputs: TypeAlias = "dict[str, Tensor]"  # padded input_ids and attention_mask (B, T)
Forward: TypeAlias = Callable[
    [Iterable[Inputs]], Iterator[np.ndarray]
]  # of each batch its embeddings (B, D) float32

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
        raise InputError(f"{engine} needs {' and '.join(missing)}: pip install 'dense_retrieval[{extra}]'")


def by_torch(model: BiEncoder, device: str = "cpu", bf16: bool = False) -> Forward:
    """The model itself.

    Args:
        bf16: compute under bfloat16 autocast.
    """
    import torch

    model = model.to(device).eval()
    on = torch.device(device).type

    def embedded(batch: Inputs) -> Tensor:
        if on == "cuda":  # a copy from pinned memory lets the GPU go on computing
            batch = {name: values.pin_memory() for name, values in batch.items()}
        with torch.inference_mode(), torch.autocast(on, torch.bfloat16, enabled=bf16):
            return model(**{k: v.to(device, non_blocking=True) for k, v in batch.items()}).float()

    def forward(batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        waiting: deque[Tensor] = deque()
        for batch in batches:
            waiting.append(embedded(batch))
            if len(waiting) > (on == "cuda"):  # a GPU has the next batch while this one is fetched
                yield waiting.popleft().cpu().numpy()
        yield from (output.cpu().numpy() for output in waiting)

    return forward


def by_file(folder: Path, bf16: bool = False) -> Forward:
    """What :func:`~dense_retrieval.student.export_engine.export_to` wrote."""
    if (folder / "model.xml").exists():
        return by_openvino(folder / "model.xml", bf16)
    return by_onnx(folder / "model.onnx")


@cache
def openvino_core() -> Any:
    """OpenVINO, once a process: each of its cores gives the thread another stack for signals, and puts back, when it
    goes, the one that it had found. That may be another core's, long gone: the next signal then ends the process."""
    import openvino

    return openvino.Core()


def by_openvino(file: Path, bf16: bool = False) -> Forward:
    import torch

    compiled = openvino_core().compile_model(
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
        try:
            for batch in batches:
                if not free:
                    yield finish(free, busy)
                request = free.popleft()
                request.start_async({k: v.numpy() for k, v in batch.items()}, share_inputs=True)
                busy.append((request, batch))  # whose memory the request reads
            while busy:
                yield finish(free, busy)
        finally:  # of a generator that is left before its end: the memory must not go before they have read it
            for request, _ in busy:
                request.wait()

    def finish(free: deque[Any], busy: deque[tuple[Any, Inputs]]) -> np.ndarray:
        request, _ = busy.popleft()
        request.wait()
        free.append(request)
        return request.get_output_tensor(0).data.copy()

    return forward


def by_onnx(file: Path) -> Forward:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(batches: Iterable[Inputs]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield session.run(None, {k: v.numpy() for k, v in batch.items()})[0]

    return forward
