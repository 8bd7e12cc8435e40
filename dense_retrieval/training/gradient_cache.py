"""Exact gradients of a loss over a whole batch's embeddings, in bounded memory (arXiv 2101.06983).

1. Encode all chunks of the batch: with a graph while graphs fit in memory, the others without.
2. Compute the loss and its gradient with respect to the embeddings.
3. Backpropagate each chunk's part of that gradient; a chunk without a graph is encoded again for it.

The arithmetic is the same wherever memory ends: what is encoded twice costs time, and changes no bit.

With several processes every one of them has the whole batch, encodes its share of the chunks, and
gets all embeddings by one sum over the processes; then each computes the same loss, backpropagates
its own chunks, and the parameters' gradients are summed once. So processes may have different
numbers of chunks, and any number of them gives the gradients of one.

Where memory runs out in one process, all hear of it together with the gradients, and may begin the batch again.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dense_retrieval.batching import pack

Terms = dict[str, Tensor]


class Texts(Protocol):
    """N tokenised texts."""

    lengths: np.ndarray  # (N,) tokens

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of some rows, padded, on the encoder's device."""


class OutOfMemory(Exception):
    """Some process had not the memory for a batch; every process raises it, and none is left waiting."""


def backward(
    encoder: nn.Module,
    texts: Texts,
    loss: Callable[[Tensor], Terms],
    *,
    chunk_tokens: int,
    graph_tokens: int | Callable[[int], bool],
) -> Terms:
    """Add the gradients of ``loss(embeddings)["loss"]`` to the encoder's parameters.

    Args:
        encoder: gives ``(n, D)`` for ``input_ids`` and ``attention_mask`` ``(n, T)``; has ``dimension``.
        loss: of embeddings ``(N, D)``, float32.
        chunk_tokens: padded tokens a forward pass.
        graph_tokens: padded tokens whose activations fit in memory together; or what says, as long as it says
            yes, whether those of so many more fit. Speed only.

    Returns:
        The loss's terms, detached.

    Raises:
        OutOfMemory: the parameters then have gradients of a part of the batch.
    """
    terms: Terms = {}
    memory = _Memory()
    with _no_cast_cache():
        mine = _share(pack(texts.lengths, chunk_tokens))
        embeddings = _zeros(encoder, texts)
        passes: deque[Tensor | _RandomState] = deque()
        with memory:
            _encode(encoder, texts, mine, embeddings, passes, graph_tokens)
        _sum(embeddings)
        embeddings.requires_grad_()
        with memory:
            if not memory.ran_out:
                terms = loss(embeddings)
                terms["loss"].backward()
                _replay(encoder, texts, mine, embeddings, passes)
        passes.clear()
        _sum_gradients(encoder, memory)
    return {name: term.detach() for name, term in terms.items()}


def embed(encoder: nn.Module, texts: Texts, chunk_tokens: int) -> Tensor:
    """Embeddings ``(N, D)`` without gradients, the work shared by the processes.

    Raises:
        OutOfMemory: as :func:`backward`.
    """
    memory = _Memory()
    embeddings = _zeros(encoder, texts)
    with _no_cast_cache(), memory:
        _encode(encoder, texts, _share(pack(texts.lengths, chunk_tokens)), embeddings, deque())
    _sum(embeddings)
    ran_out = torch.tensor([memory.ran_out], dtype=torch.int32, device=embeddings.device)
    _sum(ran_out)
    if ran_out.item():
        raise OutOfMemory
    return embeddings


def _share(chunks: list[np.ndarray]) -> list[np.ndarray]:
    """This process's chunks: dealt out in turn, and as they are sorted by length, about equal."""
    return chunks[dist.get_rank() :: _processes()] if _processes() > 1 else chunks


def _zeros(encoder: nn.Module, texts: Texts) -> Tensor:
    weight = next(encoder.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dimension: int = encoder.dimension  # type: ignore[assignment]
    return torch.zeros(len(texts.lengths), dimension, dtype=dtype, device=weight.device)


def _encode(
    encoder: nn.Module,
    texts: Texts,
    chunks: list[np.ndarray],
    embeddings: Tensor,
    passes: deque["Tensor | _RandomState"],
    fits: int | Callable[[int], bool] = 0,
) -> None:
    """Fill in the chunks' rows of the embeddings ``(N, D)``; append of the first chunks, as long as it fits, their
    part of them with its graph, of each other the random state before it."""
    kept, with_graph = 0, True
    for rows in chunks:
        more = len(rows) * int(texts.lengths[rows].max())
        with_graph = with_graph and (kept + more <= fits if isinstance(fits, int) else fits(more))
        kept += more
        state = None if with_graph else _RandomState(embeddings.device)
        with torch.set_grad_enabled(with_graph):
            output = encoder(**texts.batch(rows))
        embeddings[rows] = output.detach().to(embeddings.dtype)
        passes.append(state or output)


def _replay(
    encoder: nn.Module,
    texts: Texts,
    chunks: list[np.ndarray],
    embeddings: Tensor,
    passes: deque["Tensor | _RandomState"],
) -> None:
    """Backpropagate the embeddings' gradient through each chunk."""
    assert embeddings.grad is not None
    for rows in chunks:
        output = passes.popleft()  # and with it, in the end, its graph
        if isinstance(output, _RandomState):
            with output.replayed():
                output = encoder(**texts.batch(rows))
        output.backward(embeddings.grad[rows].to(output.dtype))


def _sum(tensor: Tensor) -> None:
    if _processes() > 1:
        dist.all_reduce(tensor)  # the other processes' rows are 0 here


def _sum_gradients(encoder: nn.Module, memory: "_Memory") -> None:
    if _processes() == 1:
        if memory.ran_out:
            raise OutOfMemory
        return
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    device = parameters[0].device
    facts = [p.grad is not None for p in parameters] + [memory.ran_out]
    somewhere = torch.tensor(facts, dtype=torch.int32, device=device)
    dist.all_reduce(somewhere, op=dist.ReduceOp.MAX)
    *used, ran_out = somewhere.tolist()
    if ran_out:
        raise OutOfMemory
    for parameter, is_used in zip(parameters, used, strict=True):
        if not is_used:  # as with one process: of a zero gradient AdamW would make weight decay
            continue
        if parameter.grad is None:  # a process without a chunk
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


class _Memory:
    """Takes note that memory ran out, for when all processes can hear of it."""

    ran_out = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        out = error is not None and is_out_of_memory(error)
        self.ran_out |= out
        return out


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _RandomState:
    """The random state before a chunk's first pass, so that dropout is the same in the second."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(d) for d in self.devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextmanager
def _no_cast_cache() -> Iterator[None]:
    """Without autocast's cache of cast weights: what the first pass, without a graph, put there
    would cut the second pass off from the weights."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
