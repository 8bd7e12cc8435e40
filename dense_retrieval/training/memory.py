"""How much of a batch's activations fits in memory."""

from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from dense_retrieval.batching import pack
from dense_retrieval.training.gradient_cache import Texts

_LEFT = 0.3  # of the memory: for the loss, a chunk's backward pass, and whoever else works here


class Free:
    """Says whether the activations of so many more tokens fit in the memory that is free now.

    Of the longest chunk of a batch it is measured, once, what autograd keeps of each padded token. What is free is
    asked each time: other programs, such as a sweep's other jobs, take memory too.
    """

    def __init__(self, encoder: nn.Module, texts: Texts, chunk_tokens: int) -> None:
        self.device = next(encoder.parameters()).device
        inputs = texts.batch(pack(texts.lengths, chunk_tokens)[0])
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self.bytes_a_token = activation_bytes(encoder, inputs) / inputs["input_ids"].numel()

    def __call__(self, tokens: int) -> bool:
        free, total = free_and_total(self.device)
        return free - tokens * self.bytes_a_token > _LEFT * total


def activation_bytes(encoder: nn.Module, inputs: dict[str, Tensor]) -> int:
    """What autograd keeps of one pass, the weights themselves not counted."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = encoder(**inputs)  # alive until all is counted, so that no address is used twice
    for parameter in encoder.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())


def free_and_total(device: torch.device) -> tuple[int, int]:
    """Bytes of a GPU; or of a CPU, within its control group's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    memory = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    if not (group / "memory.max").exists() or (limit := (group / "memory.max").read_text().strip()) == "max":
        return memory.available, memory.total
    statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])  # caches give way
    return min(memory.available, int(limit) - used), min(memory.total, int(limit))
