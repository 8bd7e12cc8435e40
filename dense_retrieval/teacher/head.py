"""The layer that gives a teacher's scores, in float32."""

from typing import Self

import torch
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that autocast leaves alone: bfloat16's 8 bits would tie many scores."""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """From ``(out, in)`` and ``(out,)``, whose memory it shares."""
        layer = cls(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight.detach())
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach())
        return layer

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())
