"""The LightningModule: a student, its loss, and one exact gradient step a batch."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule
from torch import Tensor

from dense_retrieval.groups.batch import Batch
from dense_retrieval.losses.loss import Loss
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import InputError
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import Tokens, joined
from dense_retrieval.training import memory
from dense_retrieval.training.gradient_cache import OutOfMemory, Terms, backward, embed, is_out_of_memory
from dense_retrieval.training.scored_later import ScoredLater
from dense_retrieval.training.stored import StoredEmbeddings

log = logging.getLogger(__name__)

T = TypeVar("T")


def mean_ndcg(queries: Tensor, positives: Tensor, passages: Tensor, rows: Tensor, k: int = 10) -> float:
    """Mean nDCG@k of Q queries whose one relevant passage is ranked among U: 1 / log2(1 + rank), 0 beyond rank k.

    Of equal scores the relevant passage comes last.

    Args:
        queries, passages: embeddings ``(Q, D)`` and ``(P, D)``.
        positives: ``(Q,)`` row of each query's relevant passage.
        rows: ``(P,)`` which passages these are; a row may stand there twice.
    """
    used, first = np.unique(rows.numpy(), return_index=True)
    scores = queries @ passages[torch.from_numpy(first)].T
    own = scores.gather(1, torch.from_numpy(np.searchsorted(used, positives.numpy()))[:, None])
    rank = (scores >= own).sum(1)
    return torch.where(rank <= k, 1 / torch.log2(1.0 + rank), 0.0).mean().item()


class BatchTexts:
    """The B queries of a batch, then its U unique passages: B + U token sequences; without passages B."""

    def __init__(self, batch: Batch, queries: Tokens, passages: Tokens | None, device: torch.device) -> None:
        self.tokens = queries.select(batch.queries.numpy())
        if passages is not None:
            self.tokens = joined([self.tokens, passages.select(batch.passages.numpy())])
        self.lengths = self.tokens.lengths
        self.device = device

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        padded = self.tokens.batch(rows)
        if self.device.type == "cuda":  # a copy from pinned memory lets the GPU go on computing
            padded = {name: ids.pin_memory() for name, ids in padded.items()}
        return {name: ids.to(self.device, non_blocking=True) for name, ids in padded.items()}


class DistillationModule(LightningModule):
    """Trains a student on groups of passages with the scores of a frozen cross-encoder teacher.

    The teacher ran before: its scores come with the groups, so that it needs no memory here. Groups
    that carry none (NaN) are scored by ``scored_later`` as they pass.

    Args:
        query_tokens, passage_tokens: token ids of all training queries and of the corpus.
        stored: embeddings that the passages keep: then only queries are encoded, and learnt.
        steps_per_epoch, max_epochs: length of the learning rate's schedule.
        warmup_epochs, min_warmup_steps: the learning rate rises over the larger of the two.
        final_learning_rate: fraction of the peak that the linear decay ends at.
        clip: greatest norm of the gradient.
        chunk_tokens, graph_tokens: see :func:`gradient_cache.backward`; speed only. Without ``graph_tokens``
            as many as the free memory holds, of each step anew.
        compile: the student, with torch.compile; speed only.
        shard_optimizer: each of several processes keeps and steps its part of AdamW's state (ZeRO-1); speed only.
    """

    def __init__(
        self,
        student: BiEncoder,
        loss: Loss,
        query_tokens: Tokens,
        passage_tokens: Tokens,
        *,
        stored: StoredEmbeddings | None = None,
        steps_per_epoch: int,
        max_epochs: int,
        learning_rate: float,
        weight_decay: float = 0.01,
        warmup_epochs: float = 0.5,
        min_warmup_steps: int = 10,
        final_learning_rate: float = 0.1,
        clip: float = 1.0,
        chunk_tokens: int = 4096,
        graph_tokens: int | Callable[[int], bool] | None = None,
        compile: bool = False,
        shard_optimizer: bool = False,
        scored_later: ScoredLater | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student = student
        self.loss = loss
        self.query_tokens = query_tokens
        self.passage_tokens = passage_tokens
        self.stored = stored
        self.total_steps = steps_per_epoch * max_epochs
        self.warmup_steps = max(min_warmup_steps, math.ceil(warmup_epochs * steps_per_epoch))
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.final_learning_rate = final_learning_rate
        self.clip = clip
        self.chunk_tokens = chunk_tokens
        self.graph_tokens = graph_tokens
        self.to_compile = compile
        self.shard_optimizer = shard_optimizer
        self._ran_out = False
        self._unchecked: tuple[int, Tensor, Tensor] | None = None
        # In a list: no submodule, so in no checkpoint, and never trained.
        self._scored_later = [scored_later]

    def setup(self, stage: str) -> None:
        if self.to_compile:  # here, as no compiled module can be sent to another process
            self.student.compile(dynamic=True)

    def configure_optimizers(self):
        settings: Any = {"lr": self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        parameters = [of for of in self.student.parameters() if of.requires_grad]
        if self.shard_optimizer and dist.is_initialized() and dist.get_world_size() > 1:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            optimizer: Any = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **settings)
        else:
            optimizer = torch.optim.AdamW(parameters, **settings)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)]

    def rate(self, step: int) -> float:
        """The learning rate of optimiser step 0, 1, … as a fraction of its peak."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        left = (self.total_steps - step) / max(1, self.total_steps - self.warmup_steps)
        return max(self.final_learning_rate, left)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        batch = self._scored(batch)
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        texts = self._texts(batch)

        def gradients() -> Terms:
            optimizer.zero_grad()
            torch.manual_seed(torch.initial_seed())  # the same dropout, were it the second time
            return backward(
                self.student,
                texts,
                lambda embeddings: self._terms(self.loss, self._with_stored(embeddings, batch), batch),
                chunk_tokens=self.chunk_tokens,
                graph_tokens=self._measured(texts),
            )

        terms = self._in_memory(gradients, texts)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        self.require_finite()
        self._unchecked = self.global_step, terms["loss"], norm
        if self.trainer.is_last_batch:
            self.require_finite()  # before a checkpoint is written
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
        logged = {f"train/{name}": term for name, term in terms.items()} | {"train/gradient_norm": norm}
        self.log_dict(logged | {"train/learning_rate": rate}, prog_bar=False, batch_size=1)
        self.log("loss", terms["loss"], prog_bar=True, logger=False, batch_size=1)

    def _measured(self, texts: BatchTexts) -> int | Callable[[int], bool]:
        """How many tokens' activations fit."""
        if self.graph_tokens is None:
            try:
                self.graph_tokens = memory.Free(self.student, texts, self.chunk_tokens)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return 0
        return self.graph_tokens

    def _in_memory(self, work: Callable[[], T], texts: BatchTexts) -> T:
        """What some work on a batch gives: where memory runs out, done again with half the chunk.

        Raises:
            InputError: the longest text alone is too much.
        """
        before = self.chunk_tokens
        while True:
            try:
                result = work()
                break
            except OutOfMemory:
                pass  # and with the error go the tensors that it holds
            if self._ran_out and self.chunk_tokens <= texts.lengths.max():
                raise InputError(
                    f"out of memory, even with one text a forward pass (trainer.chunk_tokens={self.chunk_tokens}); "
                    "lower trainer.batch_size or student.passage_length"
                )
            self._ran_out, self.graph_tokens = True, 0
            self.chunk_tokens = max(1, self.chunk_tokens // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if self.chunk_tokens < before and self.global_rank == 0:
            log.warning(
                "out of memory in a pass of %d tokens: going on with trainer.chunk_tokens=%d and graph_tokens=0",
                before,
                self.chunk_tokens,
            )
        return result

    def require_finite(self) -> None:
        """Of the step before, whose numbers a GPU has had the time to compute: none waits for its own."""
        step, loss, norm = self._unchecked or (0, torch.zeros(()), torch.zeros(()))
        self._unchecked = None
        if not torch.isfinite(loss + norm):
            raise InputError(
                f"the training loss is {loss.item()} and its gradient's norm {norm.item()} at step {step}; "
                "lower trainer.learning_rate, or use precision=32-true"
            )

    @torch.no_grad()
    def mean_terms(self, loss: Loss, batches: Iterable[Batch]) -> dict[str, float]:
        """The terms of a loss and their sum ``loss``, without dropout, mean over the batches' groups; and ``ndcg``,
        see :func:`mean_ndcg`, of each query's top-scored candidate among the passages of all batches."""
        self.student.eval()
        totals: dict[str, float] = {}
        n = 0
        queries, positives, passages, rows = [], [], [], []
        for batch in batches:
            batch = self._scored(batch.to(self.device))
            with self.trainer.precision_plugin.forward_context():
                embeddings = self._embedded(batch)
            for name, term in self._terms(loss, embeddings, batch).items():
                totals[name] = totals.get(name, 0.0) + term.item() * len(batch.queries)
            n += len(batch.queries)
            rows.append(batch.passages.cpu())
            queries.append(embeddings[: len(batch.queries)].float().cpu())
            passages.append(embeddings[len(batch.queries) :].float().cpu())
            positives.append(rows[-1][batch.positives.cpu()])
        self.student.train()
        if not n:
            return {}
        ndcg = mean_ndcg(torch.cat(queries), torch.cat(positives), torch.cat(passages), torch.cat(rows))
        return {name: total / n for name, total in totals.items()} | {"ndcg": ndcg}

    def _embedded(self, batch: Batch) -> Tensor:
        texts = self._texts(batch)
        found = self._in_memory(lambda: embed(self.student, texts, self.chunk_tokens), texts)
        return self._with_stored(found, batch)

    def _scored(self, batch: Batch) -> Batch:
        later = self._scored_later[0]
        if later is None or not batch.teacher.isnan().any():
            return batch
        return later.scored(batch, self.chunk_tokens)

    def _texts(self, batch: Batch) -> BatchTexts:
        passages = None if self.stored else self.passage_tokens
        return BatchTexts(batch, self.query_tokens, passages, self.device)

    def _with_stored(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """``(B + U, D)``: the encoded texts' embeddings, behind them those of the passages that are looked up."""
        if self.stored is None:
            return embeddings
        passages = torch.from_numpy(self.stored[batch.passages.numpy()])
        return torch.cat([embeddings, passages.to(embeddings)])

    @staticmethod
    def _terms(loss: Loss, embeddings: Tensor, batch: Batch) -> Terms:
        """The loss of embeddings ``(B + U, D)``: the queries', then the unique passages'."""
        queries, passages = embeddings.split([len(batch.queries), len(batch.passages)])
        with torch.autocast(embeddings.device.type, enabled=False):
            return loss(
                Similarities(
                    queries,
                    passages,
                    batch.slots,
                    batch.teacher,
                    batch.positives,
                    batch.multiplicity,
                    batch.masked,
                )
            )
