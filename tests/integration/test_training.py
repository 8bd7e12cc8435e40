"""Training: resumption, the checkpoint rule, the schedule, two processes; against plain PyTorch."""

import math
import multiprocessing
import pickle
import signal
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from conftest import WORDS
from pytorch_lightning.callbacks import Callback

from dense_retrieval.groups.batch import Batch
from dense_retrieval.groups.datamodule import GroupsDataModule
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss
from dense_retrieval.losses.ranknet import RankNet
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import Groups, InputError
from dense_retrieval.student.adapters import adapt
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.tokens import Tokens, tokenize
from dense_retrieval.training import curves
from dense_retrieval.training import fit as fitting
from dense_retrieval.training.fit import fit
from dense_retrieval.training.module import DistillationModule, mean_ndcg
from dense_retrieval.training.scored_later import ScoredLater
from dense_retrieval.training.selection import DevSelection, selection_loss

LOSS = Loss({"listwise": Listwise(1.0), "infonce": InfoNCE(0.1, 0.1)}).found(0.1, 0.2)


@pytest.fixture(scope="module")
def data(encoder_folder, tmp_path_factory):
    """24 groups over 30 passages, and the token ids of both sides."""
    rng = np.random.default_rng(0)
    tokenizer = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32).tokenizer
    tokens = []
    for name, n in (("queries", 24), ("passages", 30)):
        folder = tmp_path_factory.mktemp(name)
        tokenize(
            [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)], tokenizer, 32, "", folder
        )
        tokens.append(Tokens.load(folder))
    passages = np.stack([rng.choice(30, 4, replace=False) for _ in range(24)])
    teacher = -np.sort(-rng.random((24, 4)).astype(np.float32), axis=1)
    return Groups(np.arange(24), passages, teacher, passages[:, 0].copy(), np.arange(24) >= 20), *tokens


def parts(data, encoder_folder, *, dropout=0.0, epochs=3, rate=1e-3, loss=LOSS):
    groups, queries, passages = data
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32, dropout=dropout)
    module_data = GroupsDataModule(groups, batch_size=8, false_negative_ratio=0.6, seed=1)
    steps = len(module_data.train_dataloader())
    settings = {"max_epochs": epochs, "learning_rate": rate, "min_warmup_steps": 2, "chunk_tokens": 60}
    module = DistillationModule(student, loss, queries, passages, steps_per_epoch=steps, **settings)
    return module, module_data


def weights(module: DistillationModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.student.parameters()])


def gets(signum: int, epoch: int, step: int) -> type[Callback]:
    class Gets(Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            if (trainer.current_epoch, index) == (epoch, step):
                signal.raise_signal(signum)

    return Gets


DEATHS = {"SIGTERM": (signal.SIGTERM, 1, 1), "in the last step": (signal.SIGTERM, 2, 2)}
DEATHS |= {"Ctrl+C": (signal.SIGINT, 1, 1)}


@pytest.mark.parametrize(("death", "dropout"), zip(DEATHS, [0.2, 0.0, 0.0], strict=True))
def test_a_killed_run_ends_with_the_same_weights(data, encoder_folder, tmp_path, monkeypatch, death, dropout):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, whole_data = parts(data, encoder_folder, dropout=dropout)
    settings = {"max_epochs": 3, "patience": 9, "accelerator": "cpu"}
    logged: dict[str, dict[tuple[str, int], float]] = {"whole": {}, "broken": {}}

    def keep(name: str):
        return lambda values, step: logged[name].update({(key, step): v for key, v in values.items()})

    summary = fit(whole, whole_data, tmp_path / "whole", log=keep("whole"), **settings)

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "Bar", gets(*DEATHS[death]))
        patched.setattr(fitting, "unwatched", lambda: False)
        broken, broken_data = parts(data, encoder_folder, dropout=dropout)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ended:
            fit(broken, broken_data, tmp_path / "broken", **settings)
    assert ended.type is KeyboardInterrupt if death == "Ctrl+C" else ended.value.code == 143
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    torch.rand(5)  # another process has another random state
    resumed, resumed_data = parts(data, encoder_folder, dropout=dropout)
    again = fit(resumed, resumed_data, tmp_path / "broken", log=keep("broken"), **settings)
    assert torch.equal(weights(whole), weights(resumed))
    assert again == summary and summary["steps"] == 9 and len(summary["dev"]) == 4
    # what the killed process had logged is still there, and handed on
    assert logged["broken"] == pytest.approx(logged["whole"])
    processes = [len(list((tmp_path / n).glob("curves/*/metrics.csv"))) for n in ("whole", "broken")]
    assert processes == ([1, 1] if death == "in the last step" else [1, 2])
    best = min(epoch["loss"] for epoch in summary["dev"])  # measured without dropout
    assert whole.mean_terms(LOSS, whole_data.val_dataloader())["loss"] == pytest.approx(best, rel=1e-6)


def test_the_weights_of_the_best_dev_ndcg_are_kept(data, encoder_folder, tmp_path):
    """By a ranking of the dev queries among the passages of all dev groups, in float64, passage by passage."""
    module, module_data = parts(data, encoder_folder)
    summary = fit(module, module_data, tmp_path, max_epochs=3, patience=9, accelerator="cpu", select="ndcg")
    curve = [epoch["ndcg"] for epoch in summary["dev"]]
    assert summary["best_epoch"] == int(np.argmax(curve))
    dev = module_data.groups.dev
    groups = module_data.groups
    used = sorted({int(p) for p in groups.passages[dev].ravel() if p >= 0})

    def embedded(tokens, rows):
        with torch.no_grad():
            return module.student(**tokens.batch(np.array(rows))).double().numpy()

    passages, gains = embedded(module.passage_tokens, used), []
    for query, positive in zip(groups.query[dev], groups.passages[dev, 0], strict=True):
        scores = passages @ embedded(module.query_tokens, [query])[0]
        rank = int((scores >= scores[used.index(int(positive))]).sum())
        gains.append(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    assert max(curve) == pytest.approx(np.mean(gains), abs=1e-6)


def test_mean_ndcg_by_hand():
    queries = torch.eye(3)
    passages = torch.tensor([[1.0, 0, 0], [0.5, 1, 0], [0.5, 0.2, 0], [0.5, 1, 0]])
    rows = torch.tensor([7, 4, 5, 4])  # one passage stands there twice
    # query 0 finds 7 first; query 1 has its own passage behind one; query 2 ties with all three
    found = mean_ndcg(queries, torch.tensor([7, 5, 4]), passages, rows)
    assert found == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(4)) / 3)
    assert mean_ndcg(queries[2:], torch.tensor([4]), passages, rows, k=2) == 0


def _killed(folder, *of) -> None:
    fitting.Bar, fitting.unwatched = gets(signal.SIGKILL, 1, 2), lambda: False
    fit(*parts(*of, dropout=0.2), folder, max_epochs=3, patience=9, accelerator="cpu", every_n_steps=2)


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_within_an_epoch_goes_on_there(data, encoder_folder, tmp_path, workers):
    """Killed in step 6 of 9, it goes on after step 4; weights and curves are those of an unbroken run, bit for bit."""
    settings = {"max_epochs": 3, "patience": 9, "accelerator": "cpu"}
    found = {}
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        module, module_data = parts(data, encoder_folder, dropout=0.2)
        if name == "broken":
            process = multiprocessing.get_context("spawn").Process(
                target=_killed, args=(tmp_path / name, data, encoder_folder)
            )
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            assert torch.load(tmp_path / name / "last.ckpt", weights_only=True)["global_step"] == 4
            module_data.workers = workers
        logged: dict = {}

        def log(values, step, logged=logged):
            logged.update({(key, step): value for key, value in values.items()})

        summary = fit(module, module_data, tmp_path / name, log=log, **settings)
        found[name] = summary, logged, weights(module)
    assert found["broken"][:2] == found["whole"][:2]
    assert {step for _, step in found["broken"][1]} == set(range(10))
    assert torch.equal(found["broken"][2], found["whole"][2])


def too_much(student: BiEncoder, tokens: int) -> None:
    """Let a training forward pass of more tokens run out of memory."""
    forward = student.forward

    def limited(input_ids, attention_mask):
        if student.training and input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, attention_mask=attention_mask)

    student.forward = limited


def test_out_of_memory_halves_the_chunk(data, encoder_folder, tmp_path, caplog):
    """The weights are those of a run that began with the half, dropout and all."""
    found = []
    for chunk in (30, 60):
        folder = tmp_path / str(chunk)
        folder.mkdir()
        module, module_data = parts(data, encoder_folder, dropout=0.2, epochs=1)
        module.chunk_tokens = chunk
        if chunk == 60:
            too_much(module.student, 50)
        fit(module, module_data, folder, max_epochs=1, accelerator="cpu")
        found.append(weights(module))
        assert module.chunk_tokens == 30
    assert torch.equal(*found)
    assert [m for m in caplog.messages if "memory" in m] == [
        "out of memory in a pass of 60 tokens: going on with trainer.chunk_tokens=30 and graph_tokens=0"
    ]


def test_a_text_that_does_not_fit_is_one_line(data, encoder_folder, tmp_path):
    module, module_data = parts(data, encoder_folder, epochs=1)
    too_much(module.student, 1)
    with pytest.raises(
        InputError, match=r"^out of memory, even with one text.*chunk_tokens=7\).*trainer.batch_size"
    ):
        fit(module, module_data, tmp_path, max_epochs=1, accelerator="cpu")


class Remembers(torch.nn.Module):
    """A teacher that knows the raw score of each pair of texts."""

    def __init__(self, raw: dict[tuple[str, str], float]) -> None:
        super().__init__()
        self.raw, self.asked = raw, 0

    def score(self, queries, passages, max_tokens):
        self.asked += len(queries)
        return np.array([self.raw[pair] for pair in zip(queries, passages, strict=True)], dtype=np.float32)


def test_scoring_while_training_gives_the_weights_of_scoring_before(data, encoder_folder, tmp_path):
    """Half of the groups carry no scores; the teacher's raw ones are 3 + 2 times the labels."""
    groups, queries, passages = data
    raw = {
        (f"q{q}", f"p{p}"): 3 + 2 * float(t)
        for q, row, scores in zip(groups.query, groups.passages, groups.teacher, strict=True)
        for p, t in zip(row, scores, strict=True)
    }
    teacher = Remembers(raw)
    texts = [f"q{i}" for i in range(24)], [f"p{i}" for i in range(30)]
    unscored = groups.teacher.copy()
    unscored[::2] = np.nan
    without = replace(groups, teacher=unscored)
    results = []
    for name, of in {"before": groups, "later": without}.items():
        (tmp_path / name).mkdir()
        module, module_data = parts((of, queries, passages), encoder_folder)
        module._scored_later = [ScoredLater(teacher, *texts, np.tile([3.0, 2.0], (24, 1)), 0.6)]
        summary = fit(module, module_data, tmp_path / name, max_epochs=3, patience=9, accelerator="cpu")
        results.append((weights(module), summary["dev"]))
        assert "teacher" not in " ".join(module.state_dict())
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-6, rtol=1e-5)
    assert results[0][1][-1] == pytest.approx(results[1][1][-1], rel=1e-5)
    assert teacher.asked == 4 * (10 * 3 + 2 * 4)  # training groups each epoch, dev groups before and after


def test_a_run_that_had_stopped_early_trains_no_more(data, encoder_folder, tmp_path):
    first = fit(*parts(data, encoder_folder, rate=5.0, epochs=6), tmp_path, max_epochs=6, accelerator="cpu")
    assert first["epochs"] < 6
    again = fit(*parts(data, encoder_folder, rate=5.0, epochs=6), tmp_path, max_epochs=6, accelerator="cpu")
    assert again == first


def test_two_devices_train_like_one(data, encoder_folder, tmp_path, monkeypatch):
    """Also with a sharded optimiser, in a SLURM job of one task, from whose checkpoint one device goes on."""
    results = []
    for devices, sharded in ((1, False), (2, False), (2, True)):
        folder = tmp_path / f"{devices} {sharded}"
        folder.mkdir()
        logged: dict[str, list[float]] = {}

        def log(values, step, logged=logged):
            for name, value in values.items():
                logged.setdefault(name, []).append(value)

        module, module_data = parts(data, encoder_folder, epochs=2)
        module.shard_optimizer = sharded
        if sharded:
            for name in ("SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_NNODES"):
                monkeypatch.setenv(name, "1")
            for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
                monkeypatch.setenv(name, "0")
            monkeypatch.setenv("SLURM_JOB_NAME", "x")
        fit_on = {"max_epochs": 1, "accelerator": "cpu", "devices": devices}
        summary = fit(module, module_data, folder, log=log, **fit_on)
        results.append((weights(module), summary, logged))
    (one, its_summary, its_log), (two, their_summary, their_log), (sharded, _, sharded_log) = results
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    assert torch.equal(two, sharded) and their_log == sharded_log
    assert (their_summary["steps"], len(their_summary["dev"])) == (its_summary["steps"], 2) == (3, 2)
    for name in ("train/loss", "train/learning_rate", "dev/loss"):
        assert their_log[name] == pytest.approx(its_log[name], rel=1e-4)
    ends = []
    for name in ("1 False", "2 True"):
        module, module_data = parts(data, encoder_folder, epochs=2)
        summary = fit(module, module_data, tmp_path / name, max_epochs=2, accelerator="cpu")
        assert summary["steps"] == 6
        ends.append(torch.load(tmp_path / name / "last.ckpt", weights_only=True))
    for name, value in ends[0]["state_dict"].items():
        torch.testing.assert_close(ends[1]["state_dict"][name], value, atol=1e-5, rtol=1e-4)


def test_one_epoch_equals_plain_pytorch(data, encoder_folder, tmp_path):
    """The same batches, losses and schedule written out, every text encoded alone."""
    module, module_data = parts(data, encoder_folder, epochs=1)
    fit(module, module_data, tmp_path, max_epochs=1, accelerator="cpu")

    _, queries, passages = data
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    _, reference_data = parts(data, encoder_folder)
    for step, batch in enumerate(reference_data.train_dataloader()):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * [0.5, 1.0, 1.0][step]  # 2 warm-up steps, then the decay begins
        q = torch.cat([student(**queries.batch(np.array([int(row)]))) for row in batch.queries])
        p = torch.cat([student(**passages.batch(np.array([int(row)]))) for row in batch.passages])
        rest = (batch.slots, batch.teacher, batch.positives, batch.multiplicity, batch.masked)
        loss = LOSS(Similarities(q, p, *rest))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in student.parameters()])
    torch.testing.assert_close(weights(module), expected, atol=1e-5, rtol=1e-4)


def test_training_lowers_the_dev_loss_and_keeps_the_best(data, encoder_folder, tmp_path):
    module, module_data = parts(data, encoder_folder, epochs=4, rate=3e-3)
    summary = fit(module, module_data, tmp_path, max_epochs=4, patience=9, accelerator="cpu")
    losses = [epoch["loss"] for epoch in summary["dev"]]
    assert summary["best_epoch"] == int(np.argmin(losses))
    assert module.mean_terms(LOSS, module_data.val_dataloader())["loss"] == pytest.approx(
        min(losses), rel=1e-6
    )
    uneven = GroupsDataModule(data[0], 3, 0.6, seed=1)  # dev batches of 3 and 1 groups
    listwise = summary["dev"][summary["best_epoch"]]["listwise"]
    assert module.mean_terms(LOSS, uneven.val_dataloader())["listwise"] == pytest.approx(listwise, rel=1e-5)


def test_the_student_is_compiled_where_it_is_trained(data, encoder_folder, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: compiled.append((self, how)))
    module, module_data = parts(data, encoder_folder, epochs=1)
    module.to_compile = True
    assert compiled == []
    fit(module, module_data, tmp_path, max_epochs=1, accelerator="cpu")
    assert compiled == [(module.student, {"dynamic": True})]


def test_nothing_that_helps_leaves_the_untuned_student(data, encoder_folder, tmp_path):
    module, module_data = parts(data, encoder_folder, rate=5.0)
    before = weights(module)
    summary = fit(module, module_data, tmp_path, max_epochs=3, accelerator="cpu")
    assert summary["best_epoch"] == 0
    assert torch.equal(weights(module), before)


def test_without_dev_groups_the_last_weights_are_kept(data, encoder_folder, tmp_path):
    groups = replace(data[0], dev=np.zeros_like(data[0].dev))
    module, module_data = parts((groups, *data[1:]), encoder_folder, epochs=3, rate=5.0)
    summary = fit(module, module_data, tmp_path, max_epochs=3, patience=1, accelerator="cpu")
    assert (summary["best_epoch"], summary["dev"]) == (3, [{}, {}, {}, {}])
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    trained = {f"student.{name}": value for name, value in module.student.state_dict().items()}
    assert all(torch.equal(trained[name], value) for name, value in last.items())


def test_the_stopping_rule():
    selection = DevSelection(None, patience=2)
    curve = [(1.0, 1.0), (0.9, 0.9), (0.95, 0.8), (0.96, 0.85), (0.97, 0.9)]
    stale = []
    for loss, listwise in curve:
        selection.curve.append({"loss": loss, "listwise": listwise})
        stale.append(selection._stale())
    assert stale == [0, 0, 0, 1, 2]  # the listwise loss still improved in epoch 2
    assert selection.best_epoch == 1


def test_the_schedule(data, encoder_folder):
    module, _ = parts(data, encoder_folder, epochs=10)  # 3 steps an epoch: 30 steps, 2 of warm-up
    rates = [module.rate(step) for step in range(31)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    np.testing.assert_allclose(np.diff(rates[2:27]), -1 / 28)
    assert rates[-1] == 0.1 == min(rates)


def test_checkpoints_hold_the_student_only(data, encoder_folder, tmp_path):
    module, module_data = parts(data, encoder_folder, epochs=1)
    fit(module, module_data, tmp_path, max_epochs=1, accelerator="cpu")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert {name.split(".")[0] for name in state["state_dict"]} == {"student"}


def test_a_checkpoint_that_would_run_code_is_refused(data, encoder_folder, tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for content in (pickle.dumps(Runs()), b"", b"PK no zip"):
        (tmp_path / "last.ckpt").write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]*last.ckpt is broken, or of another version[^\n]*$"):
            fit(*parts(data, encoder_folder), tmp_path, max_epochs=1, accelerator="cpu")
    torch.save({"callbacks": Runs()}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"last.ckpt"):
        fit(*parts(data, encoder_folder), tmp_path, max_epochs=1, accelerator="cpu")
    assert not (tmp_path / "ran").exists()


def test_curves_of_many_processes_are_in_order(tmp_path):
    for process in range(12):
        folder = tmp_path / "curves" / str(process)
        folder.mkdir(parents=True)
        # Each process repeats the last step of the one before, which had been killed in that epoch.
        lines = [f"{process + step},{process * 10 + step}.0,\n" for step in (0, 1)]
        (folder / "metrics.csv").write_text(
            "step,train/loss,dev/loss\n" + "".join(lines) + f"{process},,1.0\n"
        )
    expected = [(step, step * 10.0) for step in range(12)] + [(12, 111.0)]
    assert curves.training_loss(tmp_path) == expected
    assert curves.training_loss(tmp_path, points=7) == expected[::2]
    replayed: dict[int, float] = {}
    curves.replay(tmp_path, lambda values, step: replayed.update({step: values.get("train/loss")}))
    assert list(replayed) == list(range(13))


def test_the_checkpoint_is_chosen_by_the_same_rule_whatever_is_trained():
    found = Loss({"ranknet": RankNet(1.0)}).found(0.05, 0.3)
    assert selection_loss(found).terms == {"listwise": Listwise(1.0, 0.05, 0.3), "infonce": InfoNCE(0.1)}
    assert selection_loss(LOSS).terms == {
        "listwise": Listwise(1.0, 0.1, 0.2),
        "infonce": InfoNCE(0.1, 0.1),
    }
    inactive = Loss({"listwise": Listwise(0, 9.0, 9.0), "mine": InfoNCE(2, 0.7)}).found(0.05, 0.3)
    assert selection_loss(inactive).terms == {
        "listwise": Listwise(1.0, 0.05, 0.3),
        "infonce": InfoNCE(0.1, 0.7),
    }


@pytest.mark.parametrize("devices", [1, 2])
def test_a_loss_that_is_not_a_number_stops_with_one_line(data, encoder_folder, tmp_path, devices):
    module, module_data = parts(data, encoder_folder)
    with torch.no_grad():
        next(module.student.parameters()).fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"^the training loss is nan.* step 0; lower trainer.learning_rate[^\n]*$"
    ):
        fit(module, module_data, tmp_path, max_epochs=1, accelerator="cpu", devices=devices)


def test_batches_do_not_depend_on_who_asks(data):
    groups = data[0]
    one, other = (GroupsDataModule(groups, 8, 0.6, seed=3) for _ in range(2))
    for epoch in (0, 1):
        for loaders in [(one.train_dataloader(), other.train_dataloader())]:
            for loader in loaders:
                loader.sampler.set_epoch(epoch)
            pairs = zip(*loaders, strict=True)
            assert all(torch.equal(a.queries, b.queries) for a, b in pairs)
    orders = []
    for epoch in (0, 1):
        loader = one.train_dataloader()
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch.queries for batch in loader]).tolist())
    assert orders[0] != orders[1]
    seen = torch.cat([batch.queries for batch in one.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(20))


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_batches_that_another_process_makes_are_the_same(data):
    loaders = []
    for workers in (0, 1):
        loader = GroupsDataModule(data[0], 8, 0.6, seed=3, workers=workers).train_dataloader()
        loader.sampler.set_epoch(1)
        loaders.append(loader)
    for here, there in zip(*loaders, strict=True):
        assert isinstance(there, Batch)
        for field in fields(Batch):
            assert torch.equal(getattr(here, field.name), getattr(there, field.name)), field.name


def test_a_batch_is_of_one_corpus(data):
    groups = data[0]
    corpus = np.arange(len(groups.query)) % 3
    module = GroupsDataModule(groups, 4, 0.6, 1, corpus)
    loader = module.train_dataloader()
    of_query = dict(zip(groups.query.tolist(), corpus.tolist(), strict=True))
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = [batch.queries.tolist() for batch in loader]
        assert len(batches) == len(loader)
        assert all(len({of_query[q] for q in batch}) == 1 for batch in batches)
        assert sorted(q for batch in batches for q in batch) == sorted(groups.query[~groups.dev].tolist())
        orders.append([of_query[batch[0]] for batch in batches])
    assert set(orders[0]) == {0, 1, 2} and orders[0] != sorted(orders[0])
    assert orders[0] != orders[1]


def with_adapters(data, encoder_folder, **settings):
    module, module_data = parts(data, encoder_folder, **settings)
    torch.manual_seed(3)
    adapt(module.student, rank=2)
    return module, module_data


def test_adapters_alone_are_in_checkpoints_from_which_a_killed_run_goes_on(
    data, encoder_folder, tmp_path, monkeypatch
):
    settings = {"max_epochs": 3, "patience": 9, "accelerator": "cpu"}
    for name in ("whole", "broken", "all weights"):
        (tmp_path / name).mkdir()
    whole, whole_data = with_adapters(data, encoder_folder, rate=1e-2)
    before = weights(whole)
    summary = fit(whole, whole_data, tmp_path / "whole", **settings)
    with monkeypatch.context() as patched:
        patched.setattr(fitting, "Bar", gets(signal.SIGTERM, 1, 1))
        patched.setattr(fitting, "unwatched", lambda: False)
        with pytest.raises(SystemExit):
            fit(*with_adapters(data, encoder_folder, rate=1e-2), tmp_path / "broken", **settings)
    torch.rand(5)
    resumed, resumed_data = with_adapters(data, encoder_folder, rate=1e-2)
    assert fit(resumed, resumed_data, tmp_path / "broken", **settings) == summary
    assert torch.equal(weights(whole), weights(resumed))
    trained = [of for of in whole.student.parameters() if of.requires_grad]
    n = sum(of.numel() for of in trained)
    assert 0 < (weights(whole) != before).sum() <= n < len(before) / 3

    state = torch.load(tmp_path / "whole/last.ckpt", weights_only=True)
    assert all("lora_" in name for name in state["state_dict"])
    assert sum(of.numel() for of in state["state_dict"].values()) == n
    # AdamW keeps two numbers a parameter, and of each tensor its step
    kept = [of for state in state["optimizer_states"][0]["state"].values() for of in state.values()]
    assert sum(of.numel() for of in kept if of.ndim) <= 2 * n
    fit(*parts(data, encoder_folder), tmp_path / "all weights", **settings | {"max_epochs": 1})
    for name in ("last.ckpt", "best.safetensors"):
        small, large = ((tmp_path / run / name).stat().st_size for run in ("whole", "all weights"))
        assert small < large


def test_two_devices_train_adapters_like_one(data, encoder_folder, tmp_path):
    found = []
    for devices in (1, 2):
        (tmp_path / str(devices)).mkdir()
        module, module_data = with_adapters(data, encoder_folder, epochs=1, rate=1e-2)
        module.shard_optimizer = devices == 2
        fit(module, module_data, tmp_path / str(devices), max_epochs=1, accelerator="cpu", devices=devices)
        found.append(weights(module))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)
