"""The student as a file of another engine than torch."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.utils import instantiate

from dense_retrieval.hub import weights_size
from dense_retrieval.records import InputError
from dense_retrieval.stage import Counted, Counts, Folder, stage
from dense_retrieval.student.engine import Inputs, by_onnx, by_openvino, openvino_core, require
from dense_retrieval.student.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dense_retrieval.student.bi_encoder import BiEncoder

_CALIBRATION_TEXTS = 100


def _file(weights: Counted, engine: str, **_: Any) -> dict[str, float]:
    """Bytes at most: those of the weights, of which OpenVINO's int8 leaves a quarter, and ONNX's what is no product."""
    return {"bytes": weights_size(weights) / (4 if engine == "openvino_int8" else 1)}


@stage(lambda folder: folder, forecast=_file)
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


def export_to(
    engine: str,
    model: BiEncoder,
    folder: Path,
    calibration: Tokens | None = None,
    *,
    stem: str = "model",
    hidden_states: bool = False,
) -> None:
    """Write ``model.xml`` and ``model.bin``, or ``model.onnx``: ``input_ids``, ``attention_mask`` -> embeddings.

    Args:
        stem: of the files, instead of "model".
        hidden_states: give ``last_hidden_state`` too, which sentence-transformers' backends pool themselves; the
            embeddings, ``sentence_embedding``, are the first output still.

    Raises:
        InputError: the model cannot be exported.
    """
    import torch

    name, _, precision = engine.partition("_")
    write, suffix = {"openvino": (_write_openvino, ".xml"), "onnx": (_write_onnx, ".onnx")}[name]
    outputs = ["sentence_embedding", "last_hidden_state"] if hidden_states else ["embeddings"]
    computed = _with_hidden_states(model) if hidden_states else model
    try:
        with torch.no_grad(), _silent():
            file = folder / f"{stem}{suffix}"
            write(computed.cpu().eval(), outputs, file, calibration, precision == "int8")
            _check(model, file, exact=precision != "int8")
    except Exception as error:  # a tracer or converter raises what it likes
        first = str(error).strip().partition("\n")[0][:200]
        raise InputError(
            f"student.path={model.path} cannot be exported for student.engine={engine}: {first}; "
            "use student.engine=torch"
        ) from error


def _check(model: BiEncoder, file: Path, exact: bool) -> None:
    """Raise ValueError where the file does not compute what the model does for texts of other sizes than the
    example's: of some architectures a tracer keeps those."""
    from torch.nn.functional import pad

    other = {name: pad(values[1:], (0, 4)) for name, values in _example().items()}
    (found,) = (by_openvino if file.suffix == ".xml" else by_onnx)(file)([other])
    if exact and not np.allclose(found, model(**other).numpy(), atol=1e-2):
        raise ValueError("the file gives other embeddings")


def _with_hidden_states(model: BiEncoder) -> nn.Module:
    """Gives what the model gives, and after it the last hidden states ``(B, T, D)`` that it pools."""
    from torch import nn

    class WithHiddenStates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Any] = []
            hook = self.student.transformer.register_forward_hook(lambda *of: seen.append(of[-1]))
            embeddings = self.student(input_ids, attention_mask)
            hook.remove()
            return embeddings, seen[0].last_hidden_state

    return WithHiddenStates()


def _write_openvino(
    model: nn.Module, outputs: list[str], file: Path, calibration: Tokens | None, int8: bool
) -> None:
    import openvino

    openvino_core()  # before the quantiser's own, which go
    converted = openvino.convert_model(model, example_input=_example())
    for output, name in zip(converted.outputs, outputs, strict=True):
        output.get_tensor().set_names({name})
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
    openvino.save_model(converted, file, compress_to_fp16=False)


def _sample(tokens: Tokens) -> Iterator[dict[str, np.ndarray]]:
    """Some texts from all of the table, one a batch: nothing is padding."""
    rows = np.linspace(0, len(tokens) - 1, min(_CALIBRATION_TEXTS, len(tokens)), dtype=np.int64)
    for row in rows:
        yield {name: values.numpy() for name, values in tokens.batch(np.array([row])).items()}


def _write_onnx(
    model: nn.Module, outputs: list[str], file: Path, calibration: Tokens | None, int8: bool
) -> None:
    import torch

    axes = {0: "texts", 1: "tokens"}
    torch.onnx.export(
        model,
        tuple(_example().values()),
        str(file),
        input_names=["input_ids", "attention_mask"],
        output_names=outputs,
        dynamic_axes={"input_ids": axes, "attention_mask": axes, outputs[0]: {0: "texts"}}
        | dict.fromkeys(outputs[1:], axes),
        opset_version=17,
        dynamo=False,  # the other exporter fixes the number of texts of some architectures
    )
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        whole = file.rename(file.with_name("float32.onnx"))
        quantize_dynamic(
            whole, file, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8, per_channel=True
        )
        whole.unlink()


def _example() -> Inputs:
    """Ragged, so that the mask is traced too."""
    import torch

    ids = torch.ones(3, 8, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings of tracers and the bars of quantisers, which also change everybody's logging, and
    without telling their makers what is exported here."""
    root = logging.root
    level, levels, filters = root.level, [of.level for of in root.handlers], root.filters[:]
    ci = os.environ.get("CI")
    os.environ["CI"] = "true"  # there neither openvino nor nncf sends anything
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            root.setLevel(logging.ERROR)
            yield
    finally:
        os.environ.pop("CI") if ci is None else os.environ.update(CI=ci)
        root.setLevel(level)
        for handler, its_level in zip(root.handlers, levels, strict=False):
            handler.setLevel(its_level)
        root.filters[:] = filters
