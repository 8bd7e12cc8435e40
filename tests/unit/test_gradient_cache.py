"""The gradient cache gives the plain full batch's gradients."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import tiny_config
from test_losses import random_groups
from torch import nn
from transformers import BertModel

from dense_retrieval.batching import pack
from dense_retrieval.groups.batch import collate
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.training import memory
from dense_retrieval.training.gradient_cache import OutOfMemory, backward, embed
from dense_retrieval.training.module import DistillationModule

LOSS = Loss({"listwise": Listwise(1.0, 0.05, 0.3), "infonce": InfoNCE(0.1, 0.05)})


class Texts:
    """Random token sequences of different lengths."""

    def __init__(self, n: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(2, 20, n)
        self.ids = [rng.integers(4, 20, length) for length in self.lengths]

    def batch(self, rows):
        width = self.lengths[rows].max()
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : self.lengths[row]] = torch.from_numpy(self.ids[row])
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def encoder(dropout: float = 0.0, double: bool = False) -> BiEncoder:
    torch.manual_seed(0)
    config = tiny_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = BiEncoder(BertModel(config, add_pooling_layer=False), None, pooling="mean", passage_length=32)
    return (model.double() if double else model).train()


class Takes(nn.Module):
    """A model whose argument is named."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)


def problem(n_groups: int = 6):
    """A ragged batch that shares passages, its texts, and its loss of embeddings."""
    batch = collate(random_groups(1, n=n_groups), np.arange(n_groups), 0.6)
    texts = Texts(n_groups + len(batch.passages))
    return texts, lambda embeddings: DistillationModule._terms(LOSS, embeddings, batch)


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def relative_error(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    flat, reference = (torch.cat([g.flatten().double() for g in gs]) for gs in (one, other))
    return ((flat - reference).norm() / reference.norm()).item()


def plain(model: BiEncoder, texts: Texts, loss) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One forward pass a text, one graph, one backward pass."""
    embeddings = torch.cat([model(**texts.batch(np.array([row]))) for row in range(len(texts.lengths))])
    value = loss(embeddings)["loss"]
    value.backward()
    return value.detach(), gradients(model)


@pytest.mark.parametrize("graph_tokens", [0, 10**6], ids=["cached", "one pass"])
@pytest.mark.parametrize("chunk_tokens", [1, 40, 10**6])
def test_gradients_equal_the_plain_full_batch(chunk_tokens, graph_tokens):
    texts, loss = problem()
    value, expected = plain(encoder(), texts, loss)
    model = encoder()
    terms = backward(model, texts, loss, chunk_tokens=chunk_tokens, graph_tokens=graph_tokens)
    assert terms["loss"].item() == pytest.approx(value.item(), rel=1e-5)
    assert relative_error(gradients(model), expected) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_where_memory_ends_changes_no_bit(dropout):
    texts, loss = problem()
    results = []
    for graph_tokens in (0, 100, 10**6):  # no, some, all graphs are kept
        model = encoder(dropout)
        torch.manual_seed(7)
        value = backward(model, texts, loss, chunk_tokens=40, graph_tokens=graph_tokens)["loss"]
        results.append([value, *gradients(model)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_compiled_student_has_the_same_gradients():
    texts, loss = problem()
    once, compiled = encoder(), encoder()
    compiled.compile(dynamic=True, backend="aot_eager")
    for model in (once, compiled):
        backward(model, texts, loss, chunk_tokens=40, graph_tokens=memory.Free(model, texts, 40))
    assert compiled._compiled_call_impl is not None
    assert relative_error(gradients(compiled), gradients(once)) < 1e-5


def test_activations_are_counted_to_the_byte():
    """A linear layer keeps its input, a product both factors; no weight counts."""
    layer = nn.Linear(8, 4)
    model = nn.Sequential(layer, nn.Sigmoid())
    found = memory.activation_bytes(Takes(model), {"x": torch.zeros(5, 8)})
    assert found == 4 * (5 * 8 + 5 * 4)


def test_graphs_are_kept_while_three_tenths_of_the_memory_stay_free(monkeypatch):
    texts, loss = problem()
    model = encoder(dropout=0.3)
    longest = texts.batch(pack(texts.lengths, 60)[0])
    a_token = memory.activation_bytes(model, longest) / longest["input_ids"].numel()
    before = torch.get_rng_state()
    fits = memory.Free(model, texts, 60)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(memory, "free_and_total", lambda device: (300_000 + 70.5 * a_token, 1_000_000))
    assert fits(70) and not fits(71)

    asked: list[int] = []
    texts.batch, encoded = lambda rows, batch=texts.batch: (encoded.append(rows), batch(rows))[1], []
    backward(model, texts, loss, chunk_tokens=40, graph_tokens=lambda n: asked.append(n) or len(asked) < 3)
    chunks = pack(texts.lengths, 40)
    assert asked == [len(rows) * texts.lengths[rows].max() for rows in chunks[:3]]
    assert len(encoded) == len(chunks) + len(chunks[2:])  # two graphs were kept


def test_float64_gradients_agree_to_rounding():
    texts, loss = problem()
    _, expected = plain(encoder(double=True), texts, lambda e: loss(e.double()))
    model = encoder(double=True)
    backward(model, texts, loss, chunk_tokens=40, graph_tokens=0)
    # The encoder itself pools and normalises in float32.
    assert relative_error(gradients(model), expected) < 1e-5


def test_dropout_is_replayed():
    """With dropout, the second pass must draw what the first one drew: one pass over the same chunks agrees."""
    texts, loss = problem()
    once, cached = encoder(dropout=0.3), encoder(dropout=0.3)
    torch.manual_seed(7)
    first = backward(once, texts, loss, chunk_tokens=40, graph_tokens=10**6)
    after_once = torch.rand(1)
    torch.manual_seed(7)
    second = backward(cached, texts, loss, chunk_tokens=40, graph_tokens=0)
    assert first["loss"].item() == pytest.approx(second["loss"].item(), rel=1e-6)
    assert relative_error(gradients(cached), gradients(once)) < 1e-5
    assert torch.equal(after_once, torch.rand(1))  # and the random state goes on as after one pass


def test_bfloat16_autocast_loses_no_gradient():
    """Autocast's weight cache, filled without a graph, would leave the weights without gradients."""
    texts, loss = problem()
    once, cached = encoder(), encoder()
    for model, graph_tokens in ((once, 10**6), (cached, 0)):
        with torch.autocast("cpu", torch.bfloat16):
            backward(model, texts, loss, chunk_tokens=40, graph_tokens=graph_tokens)
    assert len(gradients(cached)) == len(gradients(once)) > 10
    assert all(g.abs().sum() > 0 for g in gradients(cached)[3:] if g.ndim == 2)
    assert relative_error(gradients(cached), gradients(once)) < 1e-5


def test_embed_equals_one_by_one():
    texts, _ = problem()
    model = encoder().eval()
    alone = torch.cat([model(**texts.batch(np.array([row]))) for row in range(len(texts.lengths))])
    torch.testing.assert_close(embed(model, texts, 40), alone.detach(), atol=1e-6, rtol=1e-5)


SHARES = {"uneven chunks": 40, "one process has nothing": 10**6}  # tokens a chunk


def with_an_unused_weight() -> BiEncoder:
    model = encoder()
    model.unused = nn.Parameter(torch.ones(3))
    return model


def out_of_memory(**_) -> None:
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def _two_processes(rank: int, rendezvous: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for name, chunk_tokens in SHARES.items():
        model = with_an_unused_weight()
        terms = backward(model, *problem(5), chunk_tokens=chunk_tokens, graph_tokens=10**6)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save((terms["loss"], gradients), f"{results}/{rank} {name}.pt")
    forward, ran_out = model.forward, []
    if rank == 1:
        model.forward = out_of_memory
    for work in (
        lambda: backward(model, *problem(5), chunk_tokens=40, graph_tokens=0),
        lambda: embed(model, problem(5)[0], 40),
    ):
        try:
            work()
        except OutOfMemory:
            ran_out.append(rank)
    model.forward = forward
    again = embed(model, problem(5)[0], 40)  # the processes are still in step
    torch.save((ran_out, again), f"{results}/memory {rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_one_process_gradients(tmp_path):
    """Also where one of them has no chunk; a weight that is not used gets no gradient from either. Where one runs out
    of memory, both say so."""
    torch.multiprocessing.spawn(_two_processes, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    model = with_an_unused_weight()
    value, _ = plain(model, *problem(5))
    expected = {name: p.grad for name, p in model.named_parameters()}
    for path in [tmp_path / f"{rank} {name}.pt" for rank in range(2) for name in SHARES]:
        their_value, theirs = torch.load(path)
        assert their_value.item() == pytest.approx(value.item(), rel=1e-5)
        used = [name for name in expected if expected[name] is not None]
        assert used == [name for name in theirs if theirs[name] is not None] and "unused" not in used
        assert relative_error([theirs[n] for n in used], [expected[n] for n in used]) < 1e-5
    reports = [torch.load(tmp_path / f"memory {rank}.pt") for rank in range(2)]
    assert [ran_out for ran_out, _ in reports] == [[0, 0], [1, 1]]
    assert torch.equal(reports[0][1], reports[1][1])
