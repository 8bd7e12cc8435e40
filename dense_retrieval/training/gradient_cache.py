"""Exact gradients of a loss over a whole batch's embeddings, in bounded memory (arXiv 2101.06983).

1. Encode all chunks of the batch: with a graph while graphs fit in memory, the others without.
2. Compute the loss and its gradient with respect to the embeddings.
3. Backpropagate each chunk's part of that gradient; a chunk without a graph is encoded again for it.

The arithmetic is the same wherever memory ends: what is encoded twice costs time, and changes no bit.

With several processes every one of them has the whole batch, encodes its share of the chunks, and
gets all embeddings by one sum over the processes; then each computes the same loss, backpropagates
its own chunks, and the parameters' gradients are summed once. So processes may have different
numbers of chunks, and any number of them gives the gradients of one.
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
    """
    with _no_cast_cache():
        mine = _share(pack(texts.lengths, chunk_tokens))
        embeddings, passes = _encode(encoder, texts, mine, graph_tokens)
        embeddings.requires_grad_()
        terms = loss(embeddings)
        terms["loss"].backward()
        assert embeddings.grad is not None
        for rows in mine:
            output = passes.popleft()  # and with it, in the end, its graph
            if isinstance(output, _RandomState):
                with output.replayed():
                    output = encoder(**texts.batch(rows))
            output.backward(embeddings.grad[rows].to(output.dtype))
        _sum_gradients(encoder)
    return {name: term.detach() for name, term in terms.items()}


def embed(encoder: nn.Module, texts: Texts, chunk_tokens: int) -> Tensor:
    """Embeddings ``(N, D)`` without gradients, the work shared by the processes."""
    with _no_cast_cache():
        return _encode(encoder, texts, _share(pack(texts.lengths, chunk_tokens)))[0]


def _share(chunks: list[np.ndarray]) -> list[np.ndarray]:
    """This process's chunks: dealt out in turn, and as they are sorted by length, about equal."""
    return chunks[dist.get_rank() :: _processes()] if _processes() > 1 else chunks


def _encode(
    encoder: nn.Module, texts: Texts, chunks: list[np.ndarray], fits: int | Callable[[int], bool] = 0
) -> tuple[Tensor, deque["Tensor | _RandomState"]]:
    """Embeddings ``(N, D)``; and of the first chunks, as long as it fits, their part of them with its graph, of
    each other the random state before it."""
    weight = next(encoder.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32)
    dimension: int = encoder.dimension  # type: ignore[assignment]
    embeddings = torch.zeros(len(texts.lengths), dimension, dtype=dtype, device=weight.device)
    passes: deque[Tensor | _RandomState] = deque()
    kept, with_graph = 0, True
    for rows in chunks:
        more = len(rows) * int(texts.lengths[rows].max())
        with_graph = with_graph and (kept + more <= fits if isinstance(fits, int) else fits(more))
        kept += more
        state = None if with_graph else _RandomState(weight.device)
        with torch.set_grad_enabled(with_graph):
            output = encoder(**texts.batch(rows))
        embeddings[rows] = output.detach().to(dtype)
        passes.append(state or output)
    if _processes() > 1:
        dist.all_reduce(embeddings)  # the other processes' rows are 0 here
    return embeddings, passes


def _sum_gradients(encoder: nn.Module) -> None:
    if _processes() == 1:
        return
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    device = parameters[0].device
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    for parameter, somewhere in zip(parameters, used.tolist(), strict=True):
        if not somewhere:  # as with one process: of a zero gradient AdamW would make weight decay
            continue
        if parameter.grad is None:  # a process without a chunk
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)


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
