"""Work that splits: the same bits from one process, from two, and from a Ray cluster; who is killed loses one shard."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import shards
import torch
from conftest import WORDS
from shards import Interrupted, Squares, Watched, watched_teacher

from dense_retrieval.candidates.dense import search
from dense_retrieval.executor import HERE, Local, in_shards
from dense_retrieval.memo import Memo
from dense_retrieval.processes import Setup
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
    encode_by(load, Tokens.load(load.tokens), folder, executor=executor, device="cpu", label="")
    assert not list(folder.glob("shard-*"))
    return np.load(folder / "embeddings.npy")


def scored(load_teacher, memo: Path, executor=HERE) -> tuple[np.ndarray, int]:
    with Memo(memo) as opened:
        settings = {"max_tokens": 100, "executor": executor}
        found, new = score_candidates(load_teacher, CANDIDATES, QUERIES, TEXTS, opened, **settings)
    return found.scores, new


def watched(folder: Path, load=None, **how) -> Watched:
    folder.mkdir()
    return Watched(load, folder, **how)


@pytest.fixture
def teacher(cross_encoder_folder):
    return partial(SequenceClassifier.load, str(cross_encoder_folder), max_length=64)


@pytest.fixture
def watched_by(cross_encoder_folder):
    return lambda watched: partial(watched_teacher, str(cross_encoder_folder), watched)


def test_two_processes_give_the_embeddings_of_one_also_when_one_is_killed(
    embedder, tmp_path, small_shards, caplog
):
    alone = embed(one := watched(tmp_path / "a", embedder), tmp_path / "one")
    two = watched(tmp_path / "b", embedder, fatal=2)
    np.testing.assert_array_equal(embed(two, tmp_path / "two", Local(2)), alone)
    assert set(one.processes()) == {os.getpid()} and len(one.processes()) > 4
    assert len(two.processes()) == len(one.processes()) + 1
    assert len({*two.processes(), os.getpid()}) >= 1 + 2  # the one in its place may come when nothing is left
    assert [m for m in caplog.messages if "was killed by signal 9; another one computes it again" in m]


def test_two_processes_give_the_scores_of_one_also_when_one_is_killed(
    teacher, watched_by, tmp_path, small_shards
):
    alone, new = scored(teacher, tmp_path / "one")
    assert new == 120
    two = watched(tmp_path / "b", fatal=2)
    found, new = scored(watched_by(two), tmp_path / "two", Local(2))
    assert new == 120 and len(two.processes()) == 8 + 1
    np.testing.assert_array_equal(found, alone)
    again, new = scored(None, tmp_path / "two", Local(2))
    assert new == 0
    np.testing.assert_array_equal(again, alone)


def test_a_shard_that_kills_every_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("dense_retrieval.processes.TRIES", 2)
    fatal = watched(tmp_path / "begun", Squares(), always=True)
    with pytest.raises(InputError, match=r"^shard \d took down 2 processes, the last one was killed by sig"):
        in_shards(tmp_path, PARTS[:2], fatal, executor=Local(2))


def test_what_was_computed_before_an_error_is_kept(tmp_path):
    """And the error comes from where it is raised."""
    parts = [*PARTS, np.array([101, 1])]
    with pytest.raises(KeyError, match="large") as raised:
        in_shards(tmp_path, parts, Squares(), executor=Local(2))
    assert "in another process" in raised.value.__notes__[0]
    there = len(list(tmp_path.glob("shard-*.npy")))
    assert 7 <= there <= 8
    parts[-1] = np.array([-1, 1])
    with pytest.raises(InputError, match="^a negative number$"):
        in_shards(tmp_path, parts, Squares(), executor=Local(2))
    parts[-1] = np.array([1, 1])
    again = watched(tmp_path / "begun", Squares())
    found = in_shards(tmp_path, parts, again, executor=HERE)
    assert len(again.processes()) <= 9 - there
    np.testing.assert_array_equal([np.load(file) for file in found], [part**2 for part in parts])


def test_processes_end_with_the_one_that_started_them(tmp_path):
    with subprocess.Popen([sys.executable, shards.__file__, str(tmp_path)]) as process:
        while len(begun := Watched(None, tmp_path).processes()) < 2 and process.poll() is None:
            time.sleep(0.1)
        process.kill()
    assert len(begun) == 2
    while any(map(runs, begun)):  # until the test's time is over, or they have ended
        time.sleep(0.1)


def runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_one_shard_is_computed_here(tmp_path):
    here = watched(tmp_path / "begun", Squares())
    (file,) = in_shards(tmp_path, PARTS[:1], here, executor=Local(2))
    assert np.load(file).tolist() == [0, 1]
    assert here.processes() == [os.getpid()]


def test_other_processes_take_small_numbers_for_zero_where_this_one_does():
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        assert Setup(1).flush_denormal == flush


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


def test_search_in_parts(tmp_path, monkeypatch):
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


def test_scoring_goes_on_with_half_of_a_batch(teacher, tmp_path, monkeypatch, caplog, small_shards):
    whole, _ = scored(teacher, tmp_path / "whole")
    forward, tries = SequenceClassifier.forward, []

    def limited(self, inputs):
        tries.append(inputs["input_ids"].numel())
        if tries[-1] > 64:
            raise no_memory("torch")
        return forward(self, inputs)

    monkeypatch.setattr(SequenceClassifier, "forward", limited)
    halved, new = scored(teacher, tmp_path / "halved")
    np.testing.assert_allclose(halved, whole, atol=1e-6)
    assert new == 120 and sum(size > 64 for size in tries) == 1
    assert len([m for m in caplog.messages if m.startswith("out of memory")]) == 1


def test_one_text_that_does_not_fit_is_a_line(embedder, teacher, tmp_path, monkeypatch):
    def full(*_, **__):
        raise no_memory("cpu")

    monkeypatch.setattr(BiEncoder, "forward", full)
    with pytest.raises(InputError, match=r"^a text of 3\d tokens alone does not fit in the memory; lower"):
        embed(embedder, tmp_path / "embeddings")
    monkeypatch.setattr(SequenceClassifier, "forward", full)
    with pytest.raises(InputError, match="alone does not fit in the memory"):
        scored(teacher, tmp_path / "memo")


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


def test_a_cluster_says_what_is_wrong(ray_executor, tmp_path, caplog):
    from dense_retrieval.ray_executor import Ray

    with pytest.raises(InputError, match="^a negative number$"):
        in_shards(tmp_path, [*PARTS, *PARTS, np.array([-1])], Squares(), executor=ray_executor)
    assert "seven" in caplog.messages
    elsewhere = (
        f"does not see {tmp_path}/elsewhere; choose a folder that all nodes share, such as one on NFS$"
    )
    lost = Embedder({}, tmp_path / "elsewhere", tmp_path, None, False, 1)
    with pytest.raises(InputError, match=f"^executor=ray: node [0-9.]+ {elsewhere}"):
        in_shards(tmp_path, PARTS, lost, executor=ray_executor)
    with pytest.raises(InputError, match="^executor.devices=7: the cluster has 3 CPUs; lower it$"):
        Ray(ray_executor.address, devices=7, shared=ray_executor.shared).prepare("cpu")
    with pytest.raises(InputError, match="^executor.devices=auto: the cluster has 0 GPUs; lower it$"):
        Ray(ray_executor.address, shared=ray_executor.shared).prepare("cuda")
    assert ray_executor.device("auto") == "cpu" and ray_executor.places(None) == ["cpu"] * 3


def test_a_cluster_tokenises_and_searches_as_one_process(
    ray_executor, encoder_folder, tokens_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("dense_retrieval.student.tokens._TEXTS_A_SHARD", 10)
    monkeypatch.setattr("dense_retrieval.candidates.dense._PASSAGES_AT_ONCE", 10)
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=64)
    tokenize(TEXTS, student.tokenizer, 64, "", tmp_path, ray_executor)
    assert (tmp_path / "ids.bin").read_bytes() == (tokens_folder / "ids.bin").read_bytes()
    np.save(tmp_path / "embeddings.npy", RNG.integers(-2, 3, (60, 4)).astype(np.float32))
    passages = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    alone, many = (search(passages[:7], passages, 60, executor=by) for by in (HERE, ray_executor))
    np.testing.assert_array_equal(many.passages, alone.passages)
    np.testing.assert_array_equal(many.scores, alone.scores)


@pytest.fixture
def losing_a_node(ray_executor, cluster):
    """The executor, of which a node is killed after two results; it is replaced."""

    def kill():
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    yield Interrupted(ray_executor, 1, kill)
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)


def lost(caplog) -> int:
    """Shards that somebody was computing when the cluster lost him."""
    return sum("was lost" in message for message in caplog.messages)


def test_a_cluster_gives_the_embeddings_of_one_process_also_when_a_node_is_killed(
    losing_a_node, embedder, tmp_path, small_shards, caplog
):
    alone = embed(one := watched(tmp_path / "a", embedder), tmp_path / "one")
    many = watched(tmp_path / "b", embedder, seconds=0.3)
    np.testing.assert_array_equal(embed(many, tmp_path / "many", losing_a_node), alone)
    assert len(set(many.processes())) > 1 and os.getpid() not in many.processes()
    assert len(many.processes()) <= len(one.processes()) + lost(caplog)


def test_a_cluster_gives_the_scores_of_one_process_also_when_a_node_is_killed(
    losing_a_node, teacher, watched_by, tmp_path, small_shards, caplog
):
    alone, _ = scored(teacher, tmp_path / "one")
    many = watched(tmp_path / "b", seconds=0.3)
    found, new = scored(watched_by(many), tmp_path / "many", losing_a_node)
    assert new == 120 and os.getpid() not in many.processes() and len(many.processes()) <= 8 + lost(caplog)
    np.testing.assert_array_equal(found, alone)


def test_a_cluster_that_does_not_answer_is_a_line():
    pytest.importorskip("ray")
    import ray

    from dense_retrieval.ray_executor import Ray

    ray.shutdown()
    with socket.socket() as bound:  # nobody listens
        bound.bind(("localhost", 0))
        address = f"localhost:{bound.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^executor.address={address}: no Ray cluster answers there"):
            Ray(address).prepare("auto")
