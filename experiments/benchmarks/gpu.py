"""The paper's step, encoding and teacher scoring on a GPU, against sentence-transformers and a gradient-cache loop.

    python experiments/benchmarks/gpu.py

Models are of bert-base's size with random weights, texts are random words: no file is needed, and speed does not
depend on either. All contestants run in this process, under bfloat16 autocast, and take turns; less than 8 minutes
on an H100. ``--device cpu --small`` shows that the script works.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from against import Result, report, turns
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from dense_retrieval.groups.batch import collate
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.loss import Loss
from dense_retrieval.records import Groups
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import encode
from dense_retrieval.student.export import export
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.teacher.sequence_classifier import SequenceClassifier
from dense_retrieval.training import memory
from dense_retrieval.training.gradient_cache import backward
from dense_retrieval.training.module import BatchTexts, DistillationModule

TAU = 0.01
WORDS = [f"w{i}" for i in range(20_000)]


class Bench:
    """The texts and the models."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder, self.device = given, folder, torch.device(given.device)
        rng = np.random.default_rng(0)
        self.queries = self.texts(rng, given.queries, 12)
        self.passages = self.texts(rng, given.unique, given.tokens)
        slots = [*range(given.unique), *rng.integers(given.unique, size=given.queries * 20 - given.unique)]
        self.rows = rng.permutation(np.array(slots)).reshape(given.queries, 20)
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
        self.tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512)
        small = {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        }
        self.config = BertConfig(vocab_size=len(WORDS) + 5, **(small if given.small else {}))
        self.config.hidden_dropout_prob = self.config.attention_probs_dropout_prob = 0.0
        torch.manual_seed(0)
        model = BertModel(self.config, add_pooling_layer=False)
        lengths = {"query_length": given.tokens, "passage_length": given.tokens}
        self.student = BiEncoder(model, self.tokenizer, pooling="mean", **lengths).to(self.device).train()
        export(self.student, folder / "student", "")
        sides = []
        for name, side in {"queries": self.queries, "passages": self.passages}.items():
            (folder / name).mkdir()
            tokenize(side, self.tokenizer, given.tokens, "", folder / name)
            sides.append(Tokens.load(folder / name))
        self.query_tokens, self.passage_tokens = sides

    @staticmethod
    def texts(rng: np.random.Generator, n: int, longest: int) -> list[str]:
        lengths = np.clip(rng.lognormal(np.log(longest / 2), 0.6, n), 4, longest).astype(int)
        return [" ".join(rng.choice(WORDS, length)) for length in lengths]

    def timed(self, work: Callable[[], None]) -> Callable[[], Result]:
        def run() -> Result:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.autocast(self.device.type, torch.bfloat16):
                work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            peak = torch.cuda.max_memory_allocated() >> 20 if self.device.type == "cuda" else 0
            return {"seconds": seconds, "mb": peak}

        return run

    def our_step(self) -> Callable[[], None]:
        n = len(self.rows)
        teacher = np.linspace(1, 0, self.rows.size, dtype=np.float32).reshape(self.rows.shape)
        groups = Groups(np.arange(n), self.rows, teacher, self.rows[:, 0].copy(), np.zeros(n, dtype=bool))
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5, fused=True)
        loss = Loss({"infonce": InfoNCE(1.0, TAU)})
        chunk = 65_536
        fits: list[memory.Free] = []

        def step() -> None:
            batch = collate(groups, np.arange(n), 0.6)
            texts = BatchTexts(batch, self.query_tokens, self.passage_tokens, self.device)
            batch = batch.to(self.device)
            if not fits:
                fits.append(memory.Free(self.student, texts, chunk))
            terms = lambda e: DistillationModule._terms(loss, e, batch)  # noqa: E731
            backward(self.student, texts, terms, chunk_tokens=chunk, graph_tokens=fits[0])
            optimizer.step()
            optimizer.zero_grad()

        return step

    def loop_step(self, minibatch: int) -> Callable[[], None]:
        """Chunks of the queries, then of all B x 20 passages, each padded to its longest."""
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-5)
        b, k = self.rows.shape
        texts = [(self.query_tokens, np.arange(b)), (self.passage_tokens, self.rows.ravel())]
        chunks = [
            (tokens, rows[i : i + minibatch])
            for tokens, rows in texts
            for i in range(0, len(rows), minibatch)
        ]

        def embed(tokens: Tokens, rows: np.ndarray) -> Tensor:
            return self.student(**{k: v.to(self.device) for k, v in tokens.batch(rows).items()})

        def step() -> None:
            with torch.no_grad():
                embeddings = torch.cat([embed(*chunk) for chunk in chunks])
            torch.clear_autocast_cache()
            embeddings.requires_grad_()
            logits = embeddings[:b] @ embeddings[b:].T / TAU
            torch.nn.functional.cross_entropy(logits, torch.arange(b, device=self.device) * k).backward()
            parts = embeddings.grad.split([len(rows) for _, rows in chunks])
            for chunk, gradient in zip(chunks, parts, strict=True):
                embed(*chunk).backward(gradient)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def their_step(self, minibatch: int) -> Callable[[], None]:
        model = SentenceTransformer(str(self.folder / "student"), device=self.given.device).train()
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, mini_batch_size=minibatch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        columns = [self.queries, *([self.passages[p] for p in column] for column in self.rows.T)]
        features = [model.preprocess(column) for column in columns]

        def step() -> None:
            moved = [{k: v.to(self.device) for k, v in f.items() if isinstance(v, Tensor)} for f in features]
            loss(moved, torch.empty(0)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def encodings(self, batches: list[int]) -> dict[str, Callable[[], None]]:
        def ours() -> None:
            (self.folder / "embeddings").mkdir(exist_ok=True)
            (self.folder / "embeddings" / "embeddings.npy").unlink(missing_ok=True)
            where = {"device": self.given.device, "bf16": True, "max_tokens": 65_536}
            encode(self.student, self.passage_tokens, self.folder / "embeddings", **where)
            self.student.train()

        model = SentenceTransformer(str(self.folder / "student"), device=self.given.device)
        return {"ours": ours} | {
            f"sentence-transformers {b}": lambda b=b: model.encode(self.passages, batch_size=b)
            for b in batches
        }

    def scorings(self, batches: list[int]) -> dict[str, Callable[[], None]]:
        self.config.num_labels = 1
        folder = self.folder / "teacher"
        BertForSequenceClassification(self.config).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        teacher = SequenceClassifier.load(str(folder), max_length=256).to(self.given.device)
        model = CrossEncoder(str(folder), max_length=256, device=self.given.device)
        n = min(20_000, self.rows.size)
        pairs = [(self.queries[i // 20], self.passages[p]) for i, p in enumerate(self.rows.ravel()[:n])]
        both = [list(side) for side in zip(*pairs, strict=True)]
        return {"ours": lambda: teacher.score(*both, max_tokens=65_536)} | {
            f"CrossEncoder {b}": lambda b=b: model.predict(pairs, batch_size=b) for b in batches
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--queries", type=int, default=4096, help="a step, with 20 passages each")
    parser.add_argument("--unique", type=int, default=44_568, help="passages")
    parser.add_argument("--tokens", type=int, default=128, help="of the longest passages")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[256, 1024], help="of the peers, the best counts"
    )
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a small model, 16 queries, 200 passages")
    given = parser.parse_args()
    if given.small:
        given.queries, given.unique, given.batches = 16, 200, [16]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        steps = {"ours": bench.our_step()}
        for b in given.batches:
            steps |= {f"loop {b}": bench.loop_step(b), f"sentence-transformers {b}": bench.their_step(b)}
        size = f"{given.queries} x 20, {given.unique} passages"
        measures = [
            (f"step {size}", steps, ["loop", "sentence-transformers"]),
            (f"encoding {given.unique} passages", bench.encodings(given.batches), ["sentence-transformers"]),
            ("scoring", bench.scorings(given.batches), ["CrossEncoder"]),
        ]
        for measure, work, peers in measures:
            for warm_up in work.values():
                bench.timed(warm_up)()
            found = turns({name: bench.timed(of) for name, of in work.items()}, given.repeats)
            for peer in peers:
                names = [name for name in found if name.startswith(peer)]
                best = min(names, key=lambda name: min(r["seconds"] for r in found[name]))
                report(f"{measure} on {torch_name(bench.device)}", found["ours"], found[best], peer=best)


def torch_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


if __name__ == "__main__":
    main()
