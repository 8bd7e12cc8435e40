"""student.tune=queries: a step encodes no passage, and is that of plain PyTorch with the passages detached."""

import json
import re
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from sentence_transformers import SentenceTransformer
from test_training import data, parts, weights  # noqa: F401

from dense_retrieval.chain import Chain, describe
from dense_retrieval.config import CONF
from dense_retrieval.losses.infonce import InfoNCE
from dense_retrieval.losses.listwise import Listwise
from dense_retrieval.losses.loss import Loss
from dense_retrieval.losses.similarities import Similarities
from dense_retrieval.records import InputError
from dense_retrieval.search import results
from dense_retrieval.stage import reachable
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.training.fit import fit
from dense_retrieval.training.module import mean_ndcg
from dense_retrieval.training.stored import StoredEmbeddings

TERMS = {"listwise": Listwise(1.0), "infonce": InfoNCE(0.1, 0.1)}
LOSSES = {
    "combined": Loss(TERMS).found(0.1, 0.2),
    "listwise": Loss({"listwise": TERMS["listwise"]}).found(0.1, 0.2),
    "infonce": Loss({"infonce": TERMS["infonce"]}).found(0.1, 0.2),
}


@pytest.fixture(scope="module")
def stored(data, encoder_folder, tmp_path_factory) -> StoredEmbeddings:  # noqa: F811
    """Of the 30 passages as two corpora's, the second in float16."""
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32).eval()
    with torch.no_grad():
        rows = [student(**data[2].batch(np.array([row]))) for row in range(30)]
    vectors = torch.cat(rows).numpy()
    folders = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    np.save(folders[0] / "embeddings.npy", vectors[:12])
    np.save(folders[1] / "embeddings.npy", vectors[12:].astype(np.float16))
    return StoredEmbeddings(folders)


def all_of(stored: StoredEmbeddings) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([np.load(f / "embeddings.npy").astype(np.float32) for f in stored.folders])
    )


def test_rows_of_several_corpora_are_counted_through(stored):
    rows = np.array([13, 0, 29, 11, 12])
    found = stored[rows]
    assert found.dtype == np.float32 and np.array_equal(found, all_of(stored).numpy()[rows])


def of_queries(data, encoder_folder, stored, **how):  # noqa: F811
    module, module_data = parts(data, encoder_folder, **how)
    module.stored = stored
    return module, module_data


@pytest.mark.parametrize("graph_tokens", [0, 10**6], ids=["cached", "one pass"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_epoch_equals_plain_pytorch_with_the_passages_detached(
    data,  # noqa: F811
    encoder_folder,
    stored,
    tmp_path,
    loss,
    graph_tokens,
):
    """Every query encoded alone, the passages looked up one by one; and no passage is encoded."""
    module, module_data = of_queries(data, encoder_folder, stored, epochs=1, loss=LOSSES[loss])
    module.graph_tokens = graph_tokens
    encoded: list[int] = []
    module.student.register_forward_hook(lambda _, inputs, output: encoded.append(len(output)))
    summary = fit(module, module_data, tmp_path, max_epochs=1, patience=9, accelerator="cpu")
    train, dev = 20, 4
    assert sum(encoded) == train * (2 if graph_tokens == 0 else 1) + dev * 2  # before and after the epoch

    _, queries, _ = data
    student = BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01)
    vectors = all_of(stored)

    def terms(batch):
        q = torch.cat([student(**queries.batch(np.array([int(row)]))) for row in batch.queries])
        p = torch.stack([vectors[int(row)] for row in batch.passages])
        rest = (batch.slots, batch.teacher, batch.positives, batch.multiplicity, batch.masked)
        return LOSSES[loss](Similarities(q, p, *rest)), q, p

    _, reference_data = parts(data, encoder_folder)
    for step, batch in enumerate(reference_data.train_dataloader()):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * [0.5, 1.0, 1.0][step]
        optimizer.zero_grad()
        terms(batch)[0]["loss"].backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
    trained = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, expected in student.state_dict().items():
        torch.testing.assert_close(trained[f"student.{name}"], expected, atol=1e-5, rtol=1e-4)
    (batch,) = reference_data.val_dataloader()
    found, q, p = terms(batch)
    measured = summary["dev"][1]
    if loss == "combined":  # the selection's own, listwise + 0.1 InfoNCE
        assert measured["loss"] == pytest.approx(found["loss"].item(), rel=1e-5)
    assert measured["ndcg"] == pytest.approx(
        mean_ndcg(q, batch.passages[batch.positives], p, batch.passages), abs=1e-6
    )


def test_two_devices_train_the_queries_like_one(data, encoder_folder, stored, tmp_path):  # noqa: F811
    """By the best dev nDCG, which both find too."""
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        module, module_data = of_queries(data, encoder_folder, stored, epochs=2)
        where = {"max_epochs": 2, "patience": 9, "accelerator": "cpu", "devices": devices}
        found.append((fit(module, module_data, folder, select="ndcg", **where), weights(module)))
    (one, its_weights), (two, their_weights) = found
    torch.testing.assert_close(their_weights, its_weights, atol=1e-5, rtol=1e-4)
    assert two["dev"][-1] == pytest.approx(one["dev"][-1], rel=1e-4)


def ranked(file: Path) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for scored in ir_measures.read_trec_run(str(file)):
        found.setdefault(scored.query_id, []).append((scored.doc_id, scored.score))
    return found


def test_a_run_searches_the_untuned_student_s_passages(run, project, command, corpus, monkeypatch):
    """Nothing of the passages is computed anew; the rankings, typed queries too, are of tuned queries over them."""
    own = ["student.tune=queries", "groups.dev_fraction=0", "trainer.learning_rate=1e-2", "logger=none"]
    shown = run(project, *command, *own, "hydra.run.dir=runs/queries").stdout
    built = {"groups", "temperatures", "training", "embeddings", "ranking", "hybrid"}
    assert set(re.findall(r"(\w+): built in", shown)) == built

    made = {file.parent: json.loads(file.read_text()) for file in (project / "cache").glob("*/stage.json")}
    (stored,) = {of["inputs"]["stored"] for of in made.values() if "stored" in of["inputs"]}
    first = json.loads((project / "runs/first/metrics.json").read_text())["artifacts"]["candidates"]
    assert made[project / first]["inputs"]["passage_embeddings"] == stored
    searched = [of["inputs"]["passage_embeddings"] for of in made.values() if of["stage"] == "ranking"]
    assert searched.count(stored) == len(searched) - 2  # all but the first run's tuned student's

    passages = np.load(project / "cache" / stored / "embeddings.npy")
    texts = {p["_id"]: p["text"] for p in map(json.loads, (corpus / "corpus.jsonl").read_text().splitlines())}
    asked = {
        q["_id"]: q["text"] for q in map(json.loads, (corpus / "queries.jsonl").read_text().splitlines())
    }
    model = SentenceTransformer(str(project / "runs/queries/model"), device="cpu")
    found, untuned = (
        ranked(project / f"runs/queries/{name}.trec") for name in ("tuned_student", "untuned_student")
    )
    assert found != untuned
    for query, of in found.items():
        similarity = passages @ model.encode_query(asked[query])
        best = np.argsort(-similarity)[: len(of)]
        assert [passage for passage, _ in of[:5]] == [list(texts)[row] for row in best[:5]]
        assert [score for _, score in of] == pytest.approx(similarity[best].tolist(), abs=1e-5)

    monkeypatch.chdir(project)
    query = next(iter(found))
    ((_, typed),) = results(Path("runs/queries"), [], iter([asked[query]]), 3)
    assert [hit.id for hit in typed["tuned student"]] == [passage for passage, _ in found[query][:3]]
    folder = project / "runs/queries"
    said = "Only queries are embedded by the tuned student: passages keep the untuned one's embeddings"
    card = (folder / "model/README.md").read_text()
    assert said in card and "untuned.encode_document" in card and said in (folder / "results.md").read_text()
    assert json.loads((folder / "metrics.json").read_text())["tune"] == "queries"


def described(*overrides: str) -> Chain:
    with initialize_config_dir(CONF, version_base=None):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return describe(config, lambda *_: None)


MIXTURE = "data.members=['data=wikiscience', 'data=wikiscience data.text=title_and_text']"
KEPT = {
    "seeds": ["seeds=2", "retriever=hybrid", "evaluation.heldout_types=[claim]"],
    "rounds": ["rounds=3", "rounds_from=tuned"],
    "a mixture": ["data=mixture", MIXTURE],
    "another engine": ["student.engine=openvino"],
    "a mixture and an engine that reads passages": [
        *("data=mixture", MIXTURE, "student.engine=openvino_int8"),
    ],
    "scored later": ["groups.scored_before=5"],
}


@pytest.mark.parametrize("how", KEPT)
def test_passages_have_one_embedding_whoever_asks(how):
    chain = described("student.tune=queries", *KEPT[how])
    steps = reachable([*chain.steps, *chain.students]).values()
    for name, part in chain.parts.items():
        kept = chain.before[name]["untuned student"].arguments["passage_embeddings"]
        after = [step for of in (chain.after, chain.by_type) for step in of.get(name, {}).values()]
        assert {s.arguments["passage_embeddings"].key for s in after if s.stage.name == "ranking"} == {
            kept.key
        }
        training = [step for step in steps if step.stage.name == "training"]
        assert {step.arguments["stored"][name].key for step in training} == {kept.key}
        of_passages = [s for s in steps if s.stage.name == "embeddings" and s.arguments["tokens"] is not None]
        tokens = kept.arguments["tokens"].key
        by = {step.key for step in of_passages if step.arguments["tokens"].key == tokens}
        exact = {chain.by_torch[name].arguments["passage_embeddings"].key} if chain.by_torch else set()
        assert by == {kept.key} | exact
        assert part.c.student.tune == "queries"


def test_tuning_both_needs_no_stored_passages():
    chain = described()
    assert chain.student.arguments["stored"] is None and "stored" not in chain.student.made_from["inputs"]
    with pytest.raises(InputError, match="^student.tune=passages is unknown; use both or queries$"):
        described("student.tune=passages")
