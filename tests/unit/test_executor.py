"""Work that splits: the same bits from one process, from two, and from a Ray cluster; who is killed loses one shard."""

import contextlib
import os
import signal
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import WORDS

from dense_retrieval.candidates.dense import search
from dense_retrieval.executor import HERE, Local, in_shards
from dense_retrieval.memo import Memo
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.encode import Embedder, encode_by
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.teacher.score import score_candidates
from dense_retrieval.teacher.sequence_classifier import SequenceClassifier

RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(1, 31))) for _ in range(60)]
QUERIES = TEXTS[:6]
CANDIDATES = CandidateList(RNG.permuted(np.tile(np.arange(60), (6, 1)), axis=1)[:, :20], np.zeros((6, 20)))


@dataclass(frozen=True)
class Watched:
    """Writes down who computes what, and ends the process that begins a shard for the first time."""

    load: object
    folder: Path
    fatal: int | None = None  # the shard that is computed n-th of all
    always: bool = False

    def __call__(self, device):
        compute = self.load(device)

        def watched(shard, advance):
            begun = len(list(self.folder.glob("begun-*")))
            (self.folder / f"begun-{begun}-{os.getpid()}").touch()
            if self.always or begun == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(shard, advance)

        return watched

    def processes(self) -> list[int]:
        return [int(file.name.rpartition("-")[2]) for file in self.folder.glob("begun-*")]


class Squares:
    def __call__(self, device):
        def compute(part, advance):
            advance(len(part))
            if (part < 0).any():
                raise InputError("a negative number")
            if (part > 100).any():
                raise KeyError("large")
            return part**2

        return compute


PARTS = [np.arange(i, i + 2) for i in range(8)]


@pytest.fixture(scope="module")
def tokens_folder(encoder_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64)
    tokenize(TEXTS, student.tokenizer, 64, "", folder)
    return folder


@pytest.fixture
def embedder(encoder_folder, tokens_folder) -> Embedder:
    student = {"_target_": "dense_retrieval.student.bi_encoder.BiEncoder.load"}
    student |= {"pooling": "mean", "passage_length": 64}
    return Embedder(student, encoder_folder, tokens_folder, None, bf16=False, max_tokens=100)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("dense_retrieval.student.encode._TOKENS_A_SHARD", 150)
    monkeypatch.setattr("dense_retrieval.teacher.score._PAIRS_AT_ONCE", 16)


def embed(load, folder: Path, executor=HERE) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    tokens = Tokens.load(getattr(load, "load", load).tokens)
    encode_by(load, tokens, folder, executor=executor, device="cpu", label="")
    assert not list(folder.glob("shard-*"))
    return np.load(folder / "embeddings.npy")


def scored(folder: Path, memo: Path, executor=HERE) -> tuple[np.ndarray, int]:
    teacher = partial(SequenceClassifier.load, str(folder), max_length=64)
    with Memo(memo) as opened:
        found, new = score_candidates(
            teacher, CANDIDATES, QUERIES, TEXTS, opened, max_tokens=100, executor=executor
        )
    return found.scores, new


def test_two_processes_give_the_embeddings_of_one(embedder, tmp_path, small_shards):
    alone = embed(embedder, tmp_path / "one")
    watched = Watched(embedder, tmp_path)
    np.testing.assert_array_equal(embed(watched, tmp_path / "two", Local(2)), alone)
    by = Counter(watched.processes())
    assert len(by) == 2 and os.getpid() not in by and sum(by.values()) > 4


def test_two_processes_give_the_scores_of_one(cross_encoder_folder, tmp_path, small_shards):
    alone, new = scored(cross_encoder_folder, tmp_path / "one")
    assert new == 120
    two, new = scored(cross_encoder_folder, tmp_path / "two", Local(2))
    assert new == 120
    np.testing.assert_array_equal(two, alone)
    again, new = scored(cross_encoder_folder, tmp_path / "two", Local(2))
    assert new == 0
    np.testing.assert_array_equal(again, alone)


def test_a_process_that_is_killed_costs_its_shard(embedder, tmp_path, small_shards, caplog):
    alone = embed(Watched(embedder, tmp_path / "a" / ".."), tmp_path / "one") if False else None
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole, killed = Watched(embedder, tmp_path / "whole"), Watched(embedder, tmp_path / "killed", fatal=2)
    alone = embed(whole, tmp_path / "one")
    np.testing.assert_array_equal(embed(killed, tmp_path / "two", Local(2)), alone)
    assert len(killed.processes()) == len(whole.processes()) + 1
    assert len(set(killed.processes())) == 3  # another one in its place
    assert [m for m in caplog.messages if "was killed by signal 9; another one computes it again" in m]


def test_a_shard_that_kills_every_process_is_an_error(tmp_path):
    fatal = Watched(Squares(), tmp_path, always=True)
    with pytest.raises(InputError, match=r"^shard \d took down 3 processes, the last one was killed by sig"):
        in_shards(tmp_path, PARTS[:2], fatal, executor=Local(2))


def test_what_was_computed_before_a_kill_is_kept(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    parts, seen = PARTS, []

    def stops(n):
        seen.append(n)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_shards(tmp_path, parts, Squares(), executor=Local(2), advance=stops)
    there = len(list(tmp_path.glob("shard-*.npy")))
    assert 1 <= there < 8
    second = Watched(Squares(), tmp_path / "second")
    found = in_shards(tmp_path, parts, second, executor=Local(2))
    assert len(second.processes()) == 8 - there
    np.testing.assert_array_equal(found, [part**2 for part in parts])


def test_errors_come_from_where_they_are_raised(tmp_path):
    with pytest.raises(InputError, match="^a negative number$"):
        in_shards(tmp_path, [*PARTS, np.array([-1])], Squares(), executor=Local(2))
    with pytest.raises(KeyError, match="large") as raised:
        in_shards(tmp_path, [*PARTS, np.array([101, 1])], Squares(), executor=Local(2))
    assert "in another process" in raised.value.__notes__[0]


def test_one_shard_is_computed_here(tmp_path):
    watched = Watched(Squares(), tmp_path)
    assert in_shards(tmp_path, PARTS[:1], watched, executor=Local(2))[0].tolist() == [0, 1]
    assert watched.processes() == [os.getpid()]


def test_the_places_of_a_machine(monkeypatch):
    assert Local().places("cpu") == ["cpu"] and Local(3).places("cpu") == ["cpu"] * 3
    assert Local(3).places(None) == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Local().device("auto") == "cuda" and Local().device("cpu") == "cpu"
    assert Local().places("cuda") == [f"cuda:{i}" for i in range(4)] == Local(4).places("cuda")
    assert Local().places("cuda:2") == ["cuda:2"] and Local(1).places("cuda") == ["cuda"]
    with pytest.raises(
        InputError, match="^executor.devices=5: this machine has 4 for device=cuda; lower it$"
    ):
        Local(5).prepare("auto")
    with pytest.raises(InputError, match="^executor.devices=many is neither a number, 1 or more, nor auto$"):
        Local("many").prepare("cpu")


def test_search_in_parts_over_devices(tmp_path, monkeypatch):
    """Ties, within a part and across, are ordered by row."""
    monkeypatch.setattr("dense_retrieval.candidates.dense._PASSAGES_AT_ONCE", 7)
    passages = RNG.integers(-2, 3, (40, 4)).astype(np.float32)
    queries = RNG.integers(-2, 3, (9, 4)).astype(np.float32)
    np.save(tmp_path / "embeddings.npy", passages)
    scores = queries @ passages.T
    expected = np.lexsort((np.broadcast_to(np.arange(40), scores.shape), -scores), axis=1)[:, :40]
    for given in (passages, np.load(tmp_path / "embeddings.npy", mmap_mode="r")):
        found = search(queries, given, 40)
        np.testing.assert_array_equal(found.passages, expected)
        part = search(queries, given[3:30], 27)
        assert part.passages.max() == 26
        np.testing.assert_array_equal(
            part.scores, -np.sort(-scores[:, 3:30], axis=1)
        )  # a slice is no whole file


# A forward pass that finds no memory.


@pytest.mark.parametrize("error", ["torch", "cpu"])
def test_encoding_goes_on_with_half_of_a_batch(embedder, tmp_path, monkeypatch, caplog, error):
    whole = embed(embedder, tmp_path / "whole")
    forward, sizes = BiEncoder.forward, []

    def limited(self, input_ids, attention_mask):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 64:
            raise no_memory(error)
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(BiEncoder, "forward", limited)
    np.testing.assert_allclose(embed(embedder, tmp_path / "halved"), whole, atol=1e-6)
    assert sum(size > 64 for size in sizes) == 1  # 100 tokens once, from then on 50
    assert [m for m in caplog.messages if m.startswith("out of memory in a forward pass of 100 padded")]


def no_memory(kind: str) -> Exception:
    said = (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    )
    return torch.OutOfMemoryError("CUDA out of memory") if kind == "torch" else RuntimeError(said)


def test_scoring_goes_on_with_half_of_a_batch(
    cross_encoder_folder, tmp_path, monkeypatch, caplog, small_shards
):
    whole, _ = scored(cross_encoder_folder, tmp_path / "whole")
    forward, tries = SequenceClassifier.forward, []

    def limited(self, inputs):
        tries.append(inputs["input_ids"].numel())
        if tries[-1] > 64:
            raise no_memory("torch")
        return forward(self, inputs)

    monkeypatch.setattr(SequenceClassifier, "forward", limited)
    halved, new = scored(cross_encoder_folder, tmp_path / "halved")
    np.testing.assert_allclose(halved, whole, atol=1e-6)
    assert new == 120 and sum(size > 64 for size in tries) == 1
    assert len([m for m in caplog.messages if m.startswith("out of memory")]) == 1


def test_one_text_that_does_not_fit_is_a_line(embedder, cross_encoder_folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise no_memory("cpu")

    monkeypatch.setattr(BiEncoder, "forward", full)
    with pytest.raises(InputError, match=r"^a text of 3\d tokens alone does not fit in the memory; lower"):
        embed(embedder, tmp_path / "embeddings")
    monkeypatch.setattr(SequenceClassifier, "forward", full)
    with pytest.raises(InputError, match="alone does not fit in the memory"):
        scored(cross_encoder_folder, tmp_path / "memo")


def test_another_error_of_a_forward_pass_is_raised(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(BiEncoder, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("other")))
    with pytest.raises(RuntimeError, match="^other$"):
        embed(embedder, tmp_path / "embeddings")


# Ray: three nodes on this machine.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        # Actors find this module, and the checkout, by it.
        paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), str(Path(__file__).parent)]
        patched.setenv("PYTHONPATH", os.pathsep.join(paths))
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster()
        stack.callback(cluster.shutdown)
        cluster.add_node(num_cpus=0, object_store_memory=80_000_000, include_dashboard=False)
        for _ in range(3):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        import ray

        stack.callback(ray.shutdown)
        yield cluster


@pytest.fixture(scope="module")
def ray_executor(cluster, tmp_path_factory):
    from dense_retrieval.ray_executor import Ray

    return Ray(cluster.address, shared=str(tmp_path_factory.mktemp("shared")))


def test_a_cluster_gives_the_embeddings_of_one_process(ray_executor, embedder, tmp_path, small_shards):
    alone = embed(embedder, tmp_path / "one")
    watched = Watched(embedder, tmp_path, fatal=2)
    np.testing.assert_array_equal(embed(watched, tmp_path / "many", ray_executor), alone)
    assert len(set(watched.processes())) > 1 and os.getpid() not in watched.processes()


def test_a_cluster_gives_the_scores_of_one_process(
    ray_executor, cross_encoder_folder, tmp_path, small_shards
):
    alone, _ = scored(cross_encoder_folder, tmp_path / "one")
    many, new = scored(cross_encoder_folder, tmp_path / "many", ray_executor)
    assert new == 120
    np.testing.assert_array_equal(many, alone)


def test_a_cluster_says_what_is_wrong(ray_executor, tmp_path):
    from dense_retrieval.ray_executor import Ray

    with pytest.raises(InputError, match="^a negative number$"):
        in_shards(tmp_path, [*PARTS, np.array([-1])], Squares(), executor=ray_executor)
    with pytest.raises(InputError, match="^executor.devices=7: the cluster has 3 CPUs; lower it$"):
        Ray(ray_executor.address, devices=7, shared=ray_executor.shared).prepare("cpu")
    with pytest.raises(InputError, match="^executor.devices=auto: the cluster has 0 GPUs; lower it$"):
        Ray(ray_executor.address, shared=ray_executor.shared).prepare("cuda")
    assert ray_executor.device("auto") == "cpu" and ray_executor.places(None) == ["cpu"] * 3
