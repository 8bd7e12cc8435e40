"""How much of a batch's activations fits in memory."""

from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dense_retrieval.batching import pack
from dense_retrieval.training.gradient_cache import Texts

_SHARE = 0.5  # of what is free; the rest is for the loss, one chunk's backward pass, and other programs


def graph_tokens(encoder: nn.Module, texts: Texts, chunk_tokens: int) -> int:
    """Padded tokens whose activations fit in the free memory of the encoder's device.

    Of the longest chunk of a batch it is measured what autograd keeps for each token.
    """
    rows = pack(texts.lengths, chunk_tokens)[0]
    device = next(encoder.parameters()).device
    inputs = texts.batch(rows)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        a_token = activation_bytes(encoder, inputs) / inputs["input_ids"].numel()
    return int(_SHARE * free_bytes(device) / a_token)


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


def free_bytes(device: torch.device) -> int:
    """Of a GPU; or of a CPU, for each of the processes that share it, within its control group's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free // (dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1)
