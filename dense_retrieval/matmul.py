"""Products of float32 matrices on CPUs whose AVX-512 MKL leaves unused.

MKL, by which torch multiplies, has its AVX-512 kernels for Intel's CPUs alone; oneDNN, which torch carries as well, has
them for all. The precision is the same, float32 throughout; sums are added up in another order.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode


def fastest_matmul() -> AbstractContextManager:
    """In this context ``torch.nn.functional.linear``, and so each ``nn.Linear``, is computed, and later
    differentiated, by oneDNN where that is faster."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _mkl_is_slow():
        return nullcontext()  # what compiles or exports a model wants torch's own functions
    return _OneDNN()


@cache
def _mkl_is_slow() -> bool:
    # By the CPU's name, not by a stopwatch: two runs on one machine give the same bits.
    vendor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return (
        "AuthenticAMD" in vendor
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b of ``(..., I)`` and ``(O, I)``, where no gradient is asked for."""
    one_dnn = _mkl_is_slow() and _suits(x, weight, bias)
    return _by_one_dnn(x, weight, bias) if one_dnn else linear(x, weight, bias)


class _OneDNN(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is linear and _suits(*args, **(kwargs or {})):
            return _Linear.apply(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _suits(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    dtypes = {input.dtype, weight.dtype} | ({bias.dtype} if bias is not None else set())
    on_cpu = input.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return on_cpu and dtypes == {torch.float32} and input.numel() > 0


class _Linear(torch.autograd.Function):
    """x Wᵀ + b."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _by_one_dnn(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_input = _by_one_dnn(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = (
            _by_one_dnn(rows.t(), input.reshape(-1, input.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        )
        return of_input, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def _by_one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
