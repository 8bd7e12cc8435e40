"""Teacher scores against plain transformers, resumption, bad teachers."""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_config, tiny_tokenizer, write_beir
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.models import Dense, Pooling, Transformer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from dense_retrieval.corpus import holdout
from dense_retrieval.corpus.beir import read_folder
from dense_retrieval.corpus.dedup import duplicates
from dense_retrieval.memo import Memo
from dense_retrieval.records import CandidateList, InputError
from dense_retrieval.student.bi_encoder import BiEncoder
from dense_retrieval.student.export import export
from dense_retrieval.teacher import pairs
from dense_retrieval.teacher.score import score_candidates
from dense_retrieval.teacher.sequence_classifier import SequenceClassifier, load_classifier
from dense_retrieval.teacher.train import dense_candidates, evenly, fit, hard_negatives

QUERIES = ["star light", "the ocean of a planet", "bird"]
PASSAGES = [
    "the cell is a star",
    "ocean",
    "planet of the acid bird in a river of light",
    "rock gas tree " * 30,
]
CANDIDATES = CandidateList(np.array([[0, 2, 3], [1, 3, -1], [2, -1, -1]]), np.zeros((3, 3), np.float32))


def plain_scores(folder, query: str, passage: str, max_length: int = 32) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(query, passage, truncation="only_second", max_length=max_length, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.item()


@pytest.mark.parametrize("max_tokens", [1, 64, 4096])
def test_scores_equal_plain_transformers(cross_encoder_folder, tmp_path, max_tokens):
    teacher = SequenceClassifier.load(str(cross_encoder_folder), max_length=32)
    with Memo(tmp_path / "memo") as memo:
        scored, _ = score_candidates(
            lambda: teacher, CANDIDATES, QUERIES, PASSAGES, memo, max_tokens=max_tokens
        )
    np.testing.assert_array_equal(scored.passages, CANDIDATES.passages)
    for q, row in enumerate(CANDIDATES.passages):
        for k, p in enumerate(row):
            expected = plain_scores(cross_encoder_folder, QUERIES[q], PASSAGES[p]) if p >= 0 else -np.inf
            np.testing.assert_allclose(scored.scores[q, k], expected, atol=1e-5)


def test_scores_are_those_of_pairs_that_do_not_fit_in_memory_together(
    cross_encoder_folder, tmp_path, monkeypatch
):
    """A query's list at a time; a pair that comes again in a later one is not scored again."""
    teacher = SequenceClassifier.load(str(cross_encoder_folder), max_length=32)
    twice = CandidateList(*(np.concatenate([of, of]) for of in (CANDIDATES.passages, CANDIDATES.scores)))
    found = {}
    for name, most in {"together": 1_000_000, "apart": 1}.items():
        monkeypatch.setattr("dense_retrieval.teacher.score._PAIRS_IN_MEMORY", most)
        with Memo(tmp_path / name) as memo:
            found[name] = score_candidates(lambda: teacher, twice, [*QUERIES, *QUERIES], PASSAGES, memo)
    assert found["apart"][1] == (CANDIDATES.passages >= 0).sum()
    np.testing.assert_array_equal(found["apart"][0].passages, twice.passages)
    np.testing.assert_allclose(found["apart"][0].scores, found["together"][0].scores, atol=1e-6)


def test_scoring_goes_on_after_a_kill(cross_encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dense_retrieval.teacher.score._PAIRS_AT_ONCE", 2)
    teacher = SequenceClassifier.load(str(cross_encoder_folder), max_length=32)
    with Memo(tmp_path / "whole") as memo:
        whole, _ = score_candidates(lambda: teacher, CANDIDATES, QUERIES, PASSAGES, memo)
    calls = []
    score = SequenceClassifier.score

    def dies_at_second(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, *args, **kwargs)

    monkeypatch.setattr(SequenceClassifier, "score", dies_at_second)
    with pytest.raises(KeyboardInterrupt), Memo(tmp_path / "broken") as memo:
        score_candidates(lambda: teacher, CANDIDATES, QUERIES, PASSAGES, memo)
    with Memo(tmp_path / "broken") as memo:
        resumed, _ = score_candidates(lambda: teacher, CANDIDATES, QUERIES, PASSAGES, memo)
        assert len(calls) == 3 + 1
        again, new = score_candidates(lambda: teacher, CANDIDATES, QUERIES[::-1][::-1], PASSAGES, memo)
    assert len(calls) == 3 + 1 and new == 0
    np.testing.assert_array_equal(again.scores, whole.scores)
    np.testing.assert_array_equal(resumed.scores, whole.scores)


def test_a_teacher_that_returns_nan(cross_encoder_folder, tmp_path):
    teacher = SequenceClassifier.load(str(cross_encoder_folder), max_length=32)
    torch.nn.init.constant_(teacher.classifier.classifier.weight, float("nan"))
    with pytest.raises(InputError, match=r"6 of 6 pairs as nan.*query"), Memo(tmp_path / "memo") as memo:
        score_candidates(lambda: teacher, CANDIDATES, QUERIES, PASSAGES, memo)


def test_a_classifier_with_two_outputs(tmp_path):
    BertForSequenceClassification(tiny_config(num_labels=2)).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="2 outputs"):
        SequenceClassifier.load(str(tmp_path), max_length=32)


def families() -> dict[str, PreTrainedModel]:
    """Tiny classifiers with one output of the architectures that cross-encoders have, random."""
    sizes = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 2, "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.3}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    models = {
        "bert": BertForSequenceClassification(BertConfig(**sizes)),
        "xlm_roberta": XLMRobertaForSequenceClassification(XLMRobertaConfig(**sizes)),
        "modernbert": ModernBertForSequenceClassification(ModernBertConfig(**sizes, **ends)),
        "deberta": DebertaV2ForSequenceClassification(DebertaV2Config(**sizes)),
        "qwen3": Qwen3ForSequenceClassification(Qwen3Config(**sizes, num_key_value_heads=1, head_dim=8)),
    }
    return {name: model.eval() for name, model in models.items()}


@pytest.mark.parametrize("name", ["bert", "xlm_roberta", "modernbert", "deberta", "qwen3"])
def test_bfloat16_ties_no_scores(name, tmp_path):
    torch.manual_seed(0)
    model = families()[name]
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    names = list(model.state_dict())
    pairs = [(a, b) for a in WORDS[:10] for b in WORDS[10:]]
    inputs = tokenizer(*map(list, zip(*pairs, strict=True)), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[:, 0].numpy()
    teacher = SequenceClassifier.load(str(tmp_path), max_length=32)
    assert list(teacher.classifier.state_dict()) == names
    exact = teacher.score(*zip(*pairs, strict=True))
    np.testing.assert_allclose(exact, expected, atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = teacher.score(*zip(*pairs, strict=True))
    distinct = len(set(expected))
    assert len(set(rounded)) > 0.95 * distinct > 60
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.ptp(exact))
    teacher.classifier.save_pretrained(tmp_path)
    again = SequenceClassifier.load(str(tmp_path), max_length=32)
    np.testing.assert_array_equal(again.score(*zip(*pairs, strict=True)), exact)


def test_a_bi_encoder_alone_is_no_teacher(encoder_folder):
    with pytest.raises(
        InputError,
        match=rf"^teacher\.path={encoder_folder} lacks the weights classifier\.bias of a BertForSeq.*choose",
    ):
        SequenceClassifier.load(str(encoder_folder))


def test_sentence_transformers_cross_encoders(cross_encoder_folder, encoder_folder, tmp_path):
    theirs = CrossEncoder(str(cross_encoder_folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "ours"))
    assert (tmp_path / "ours/modules.json").is_file()
    expected = theirs.predict(
        list(zip(QUERIES, PASSAGES[:3], strict=True)), activation_fn=torch.nn.Identity()
    )
    teacher = SequenceClassifier.load(str(tmp_path / "ours"), max_length=32)
    np.testing.assert_allclose(teacher.score(QUERIES, PASSAGES[:3]), expected, atol=1e-5)
    modules = [Transformer(str(encoder_folder)), Pooling(16, "cls"), Dense(16, 1)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "dense"))
    with pytest.raises(
        InputError, match=rf"^teacher\.path={tmp_path}/dense: .*modules.json has the module Dense"
    ):
        SequenceClassifier.load(str(tmp_path / "dense"))


@pytest.fixture(scope="module")
def adapted(encoder_folder, tmp_path_factory):
    """A bi-encoder in sentence-transformers' layout, and an adapter on it that holds a head."""
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    export(BiEncoder.load(str(encoder_folder), pooling="mean", passage_length=32), base, "")
    torch.manual_seed(0)
    head = {"new": ("classifier.",), "num_labels": 1}
    classifier, tokenizer = load_classifier(str(base), "base=x", **head)
    lora = LoraConfig(
        r=2, target_modules=["query"], modules_to_save=["classifier"], init_lora_weights="gaussian"
    )
    model = get_peft_model(SequenceClassifier(classifier, tokenizer, 32).classifier, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(adapter))
    with torch.no_grad():
        inputs = tokenizer(QUERIES[0], PASSAGES[0], return_tensors="pt")
        return base, adapter, model.eval()(**inputs).logits.item()


def test_a_bi_encoder_with_an_adapter_is_a_teacher(adapted):
    base, adapter, expected = adapted
    teacher = SequenceClassifier.load(str(base), adapter=str(adapter), max_length=32)
    np.testing.assert_allclose(teacher.score(QUERIES[:1], PASSAGES[:1]), [expected], atol=1e-5)
    (teacher_file,) = adapter.glob("adapter_model.*")
    assert set(load_file(teacher_file)) >= {f"base_model.model.classifier.{n}" for n in ("weight", "bias")}


def without(*parts):
    return lambda weights: [weights.pop(n) for n in list(weights) if any(part in n for part in parts)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("classifier"),
            r"teacher\.path=.* with teacher\.adapter=.* lacks the weights classifier\.bias",
        ),
        (without("layer.1."), r"teacher\.adapter=.* cannot be loaded: Found missing adapter keys .*layer\.1"),
        (
            lambda w: w.update({n: v[:, :3] if "lora_A" in n else v for n, v in w.items()}),
            r"teacher\.adapter=.* cannot be loaded: .*size mismatch",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(adapted, tmp_path, change, message):
    base, adapter, _ = adapted
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file({n: w.contiguous() for n, w in weights.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        SequenceClassifier.load(str(base), adapter=str(tmp_path), max_length=32)
    assert "\n" not in str(error.value)


def test_an_adapter_that_is_a_pickle_is_not_opened(adapted, tmp_path):
    base, adapter, _ = adapted
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    with pytest.raises(
        InputError, match=rf"^teacher\.adapter={tmp_path} has no adapter_model\.safetensors; save"
    ):
        SequenceClassifier.load(str(base), adapter=str(tmp_path), max_length=32)


def test_the_teacher_is_frozen(cross_encoder_folder):
    teacher = SequenceClassifier.load(str(cross_encoder_folder), max_length=32)
    assert not teacher.training and not [p for p in teacher.parameters() if p.requires_grad]


def test_hard_negatives_come_from_their_lists():
    rng = np.random.default_rng(0)
    lists = [CandidateList(rng.permuted(np.tile(np.arange(10), (6, 1)), axis=1)[:, :5], np.zeros((6, 5)))] * 2
    topic = np.array([0] * 5 + [1] * 15)
    positive = np.arange(6)
    groups = hard_negatives(positive, positive[:, None], lists, topic, each=2, seed=0)
    assert groups.shape == (6, 6) and (groups[:, 0] == positive).all()
    for row, group in enumerate(groups):
        assert len(set(group)) == 6
        assert set(group[1:5]) <= set(lists[0].passages[row])
        assert topic[group[5]] == topic[positive[row]]


def test_short_candidate_lists_are_filled_from_the_topic():
    lists = [CandidateList(np.array([[0, -1], [0, 2]]), np.zeros((2, 2)))]
    positive, topic = np.array([0, 2]), np.array([0, 0, 0, 0, 1])
    groups = hard_negatives(positive, positive[:, None], lists, topic, each=1, seed=0)
    assert groups.shape == (2, 3) and groups[0, 0] == 0 and list(groups[1, :2]) == [2, 0]
    assert all(len(set(group)) == 3 and set(group) <= {0, 1, 2, 3} for group in groups.tolist())
    with pytest.raises(InputError, match="negatives_each=3: too many where a topic has 4 passages"):
        hard_negatives(positive, positive[:, None], lists, topic, each=3, seed=0)


def test_no_relevant_passage_is_a_negative():
    lists = [CandidateList(np.array([[0, 1, 2, 3, 4]]), np.zeros((1, 5)))]
    relevant = [np.array([0, 1, 3])]
    for seed in range(9):
        (group,) = hard_negatives(np.array([0]), relevant, lists, np.zeros(7), each=2, seed=seed).tolist()
        assert group[0] == 0 and set(group[1:3]) == {2, 4} and group[3] in (5, 6)


def test_training_teaches_the_ranking():
    """The passage about stars is always the right one: after training it is ranked first."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(num_labels=1, initializer_range=0.2))
    teacher = SequenceClassifier(model, tiny_tokenizer(), 32)
    model.requires_grad_(True)
    passages = [f"the {word} of a {word}" for word in ("star", "ocean", "bird", "rock")]
    queries = ["light", "heat", "mass"] * 80
    groups = np.tile(np.arange(4), (len(queries), 1))
    losses = fit(teacher, queries, passages, groups, learning_rate=5e-3, batch_size=8, max_tokens=99, seed=0)
    assert losses[0] == pytest.approx(np.log(4), abs=0.2) and np.mean(losses[-5:]) < 0.2
    assert teacher.score(["light"] * 4, passages).argmax() == 0


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_training_takes_any_number_of_steps(steps):
    teacher = SequenceClassifier(
        BertForSequenceClassification(tiny_config(num_labels=1)), tiny_tokenizer(), 16
    )
    teacher.requires_grad_(True)
    groups = np.tile(np.arange(2), (steps, 1))
    losses = fit(
        teacher, ["light"] * steps, ["cell", "star"], groups,
        learning_rate=1e-3, batch_size=1, max_tokens=99, seed=0,
    )  # fmt: skip
    assert len(losses) == steps and np.isfinite(losses).all()


def test_training_takes_no_other_run_s_embeddings(tmp_path):
    """Shards of another corpus, which encode() would go on with, lie in the output folder."""
    base, output = tmp_path / "base", tmp_path / "output"
    BertModel(tiny_config(max_position_embeddings=128)).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    for name in ("passages", "queries"):
        (output / name).mkdir(parents=True)
        np.save(output / name / "shard-00000.npy", np.zeros((3, 16), np.float32))
    before = set(output.rglob("*"))
    found = dense_candidates(str(base), PASSAGES[:3], QUERIES, 3, output, "cpu")
    assert (found.scores > 0.1).all() and set(output.rglob("*")) == before


@pytest.fixture
def beir(tmp_path):
    titles = ["Kale", "Basalt", "", "Fens", *[f"Thing {i}" for i in range(16)]]
    passages = [(title, f"Text {chr(97 + i) * 4} of it.") for i, title in enumerate(titles)]
    queries = [f"what is {i}" for i in range(20)]
    write_beir(tmp_path, passages, queries, {"test": range(5), "train": range(5, 20)})
    claims = [
        {"passage_id": f"p{i}", "querytype": "claim", "text": f"It weighs {i} grams."} for i in range(20)
    ]
    (tmp_path / "claims.jsonl").write_text("\n".join(map(json.dumps, claims)))
    return tmp_path


def test_pairs_of_titles_claims_and_people(beir):
    """Held-out passages give none; a title is not in the text that it is to find."""
    passages = read_folder(str(beir)).passages
    heldout = set(holdout.draw(len(passages), duplicates(passages, titled=True)).tolist())
    assert len(heldout) == 2
    found = pairs.read(str(beir), ["human", "title", "claim"], str(beir / "claims.jsonl"))
    by_kind = {
        "human": [f"what is {i}" for i in range(5, 20) if i not in heldout],
        "claim": [f"It weighs {i} grams." for i in range(20) if i not in heldout],
        "title": [t for i, t in enumerate(["Kale", "Basalt", "", "Fens"]) if t and i not in heldout],
    }
    assert found.queries[: len(by_kind["human"])] == by_kind["human"]
    assert [q for q in found.queries if q.startswith("It weighs")] == by_kind["claim"]
    for query, row, titled in zip(found.queries, found.positive, found.kind == "title", strict=True):
        assert titled == (query in ["Kale", "Basalt", "Fens"] or query.startswith("Thing"))
        assert row not in heldout
        if titled:
            assert found.passages[row] == f"{query} {found.untitled[row]}"
            assert query not in found.untitled[row]
    assert set(by_kind["title"]) <= set(found.queries)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_drawn_evenly(seed):
    """As many of each kind as long as there are any; one kind alone is a plain permutation."""
    kind = np.array(["claim"] * 3 + ["title"] * 40 + ["human"] * 9)
    rows = evenly(kind, 24, seed)
    assert len(set(rows.tolist())) == 24
    assert Counter(kind[rows].tolist()) == {"claim": 3, "human": 9, "title": 12}
    assert list(kind[rows]) != sorted(kind[rows])
    assert (evenly(kind[3:43], 30, seed) == np.random.default_rng(seed).permutation(40)[:30]).all()


def test_all_relevant_passages_of_a_human_query_are_known(beir):
    with (beir / "qrels/train.tsv").open("a") as judged:
        judged.write("q7\tp9\t2\nq7\tp11\t0\n")
    found = pairs.read(str(beir), ["human", "claim"], str(beir / "claims.jsonl"))
    relevant = dict(zip(found.queries, map(list, found.relevant), strict=True))
    assert sorted(relevant.pop("what is 7")) == [7, 9] and "what is 8" in relevant
    for query, rows in relevant.items():
        assert rows == [int(re.search(r"\d+", query)[0])]


def test_a_query_as_long_as_the_window_is_named():
    teacher = SequenceClassifier(
        BertForSequenceClassification(tiny_config(num_labels=1)), tiny_tokenizer(), 16
    )
    with pytest.raises(InputError, match="max_length=16 tokens leave no room .* 'star star"):
        teacher.score(["bird", "star " * 20], ["cell", "cell"])


@pytest.mark.parametrize(
    ("kinds", "file", "message"),
    [
        (["claim"], None, "claim needs file=FILE"),
        (["claim", "web"], "claims.jsonl", "no queries of type 'web'"),
        ([], None, "no such pairs"),
    ],
)
def test_pairs_that_are_not_there(beir, kinds, file, message):
    with pytest.raises(InputError, match="^corpus=nowhere: there is no such folder or zip$"):
        pairs.read("nowhere", kinds, file)
    with pytest.raises(InputError, match=message):
        pairs.read(str(beir), kinds, file and str(beir / file))
