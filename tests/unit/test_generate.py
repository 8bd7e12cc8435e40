"""What a language model is asked, and that no answer is paid for twice."""

import itertools
import json
import time

import numpy as np
import pytest
from datasets import Dataset

from dense_retrieval.memo import Memo
from dense_retrieval.queries import clean, draw
from dense_retrieval.queries.distinct import content_words
from dense_retrieval.queries.generate import Completion, generate, requests
from dense_retrieval.queries.prompts import Prompt, bases, type_name
from dense_retrieval.records import RAW_QUERIES, InputError, features

LAY = ["lay_claim", "lay_question"]
PACKAGED = ["claim", "question", "title", "keyword", "msmarco", "web", "description", "doc2query", *LAY]
PASSAGES = ["Kale is a cabbage {with} braces.", "Basalt is a rock.", "A fen is a wetland."]


class Echo:
    """Answers with the end of the message; dies after some answers."""

    at_once = 2

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list = []
        self.dies_after = dies_after

    def complete(self, asked):
        for position in reversed(range(len(asked))):  # any order is allowed
            if len(self.asked) == self.dies_after:
                raise InputError("the model gives up")
            self.asked.append(asked[position])
            yield position, Completion(asked[position].text[-9:], "stop", 10, 3)


class Unloaded(Echo):
    def complete(self, asked):
        raise AssertionError("a model loads when it is first asked")


def all_requests(passages=PASSAGES, types=("claim", "web"), passage_first=True, seed=0):
    return requests(passages, [Prompt.load(t) for t in types], passage_first, seed)


@pytest.mark.parametrize("passage_first", [True, False])
@pytest.mark.parametrize("querytype", PACKAGED)
def test_packaged_prompts_hold_the_passage_once_and_different_examples(querytype, passage_first):
    prompt = Prompt.load(querytype)
    text, shared = prompt.render("THE PASSAGE", passage_first, np.random.default_rng(0))
    assert text.count("THE PASSAGE") == 1 and "{" not in text
    shown = [e for e in prompt.examples if f"- {e}" in text]
    assert len(shown) == prompt.shots == (0 if querytype in ("web", "doc2query") else 3)
    assert text.startswith("Passage: THE PASSAGE" if passage_first and querytype != "doc2query" else text[:1])
    assert passage_first == ("THE PASSAGE" in text[:shared]) or querytype == "doc2query"


def test_types_of_a_passage_and_passages_of_a_type_share_a_beginning():
    for passage_first, same in ((True, lambda i: i // 2), (False, lambda i: i % 2)):
        asked = all_requests(passage_first=passage_first)
        heads = [r.text[: r.shared] for r in asked]
        for i in range(6):
            assert [heads[i] == h for h in heads] == [same(i) == same(j) for j in range(6)]


def test_examples_and_seeds_depend_on_seed_type_and_passage_alone():
    asked = all_requests()
    assert asked == all_requests() and all_requests(PASSAGES[1:]) == asked[2:]
    assert all_requests(types=("web",)) == asked[1::2]
    assert all(a.seed != b.seed for a, b in zip(asked, all_requests(seed=1), strict=True))
    claims = [r.text for r in requests(["same"] * 1, [Prompt.load("claim")], True, 0)]
    claims += [r.text for seed in range(20) for r in requests(["same"], [Prompt.load("claim")], True, seed)]
    assert len(set(claims)) > 10


def test_nothing_is_asked_twice_also_after_giving_up(tmp_path):
    asked = all_requests()
    with Memo(tmp_path / "whole") as memo:
        whole = generate(Echo(), memo, asked)
    assert [c.text for c in whole] == [r.text[-9:] for r in asked]
    dying, second, third = Echo(dies_after=4), Echo(), Echo()
    with pytest.raises(InputError, match="gives up"), Memo(tmp_path / "broken") as memo:
        generate(dying, memo, asked)
    with Memo(tmp_path / "broken") as memo:
        assert generate(second, memo, asked) == whole
        assert generate(third, memo, asked) == whole
        assert generate(Unloaded(), memo, asked) == whole
        more = generate(third, memo, all_requests(types=("claim", "web", "title")))
    assert sorted(r.text for r in dying.asked + second.asked) == sorted(r.text for r in asked)
    assert len(third.asked) == 3 and [more[i] for i in (0, 1, 3, 4, 6, 7)] == whole


def test_a_long_generation_says_now_and_then_how_far_it_is(tmp_path, caplog, monkeypatch):
    clock = itertools.count(step=100)  # seconds: each look at it is 100 later
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    with caplog.at_level("INFO"), Memo(tmp_path / "memo") as memo:
        generate(Echo(), memo, all_requests(["a", "b", "c"], types=("claim", "web"))[:5])
    said = [message for message in caplog.messages if " of 5 queries: " in message]
    assert said == ["3 of 5 queries: 36 queries an hour, 30 tokens read, 9 written"]


def test_half_a_character_is_replaced_whatever_wrote_it(tmp_path):
    """JSON may hold a lone surrogate, which no file and no database takes."""

    class Half(Echo):
        def complete(self, asked):
            answer = json.loads(r'"\ud83d kale \udc00\ud83e\udd6c"')
            yield from ((i, Completion(answer, "stop", 1, 1)) for i in range(len(asked)))

    with Memo(tmp_path / "memo") as memo:
        for backend in (Half(), Unloaded()):
            found = generate(backend, memo, all_requests())
            assert {c.text for c in found} == {"\ufffd kale \ufffd\U0001f96c"}
    Dataset.from_dict({"text": [c.text for c in found]})


def test_a_prompt_that_did_not_fit_is_asked_again(tmp_path):
    class Small(Echo):
        def complete(self, asked):
            yield from ((i, Completion("", "context", 0, 0)) for i in range(len(asked)))

    with Memo(tmp_path / "memo") as memo:
        assert {c.finish for c in generate(Small(), memo, all_requests())} == {"context"}
        assert {c.finish for c in generate(Echo(), memo, all_requests())} == {"stop"}


def test_a_type_of_ones_own_is_one_file(tmp_path):
    file = tmp_path / "poem.yaml"
    file.write_text("prompt: |\n  Read {passage}\n\n  Rhyme like {examples}\nexamples: [a, b]\nshots: 1\n")
    text, shared = Prompt.load(str(file)).render("this", True, np.random.default_rng(0))
    assert text[:shared] == "Read this" and text[shared:] in ("\n\nRhyme like - a", "\n\nRhyme like - b")
    assert type_name(str(file)) == Prompt.load(str(file)).querytype == "poem" and type_name("web") == "web"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt: Write a query.", r"poem.yaml: the prompt must hold \{passage\} once"),
        ("prompt: '{passage} {passage}'", r"must hold \{passage\} once"),
        ("prompt: '{passage} {examples}'", "needs at least shots=3 'examples'"),
        ("prompt: '{passage} {examples}'\nexamples: [a]\nshots: 0", "1 or more"),
        ("prompt: '{passage}'\nexample: [a]", "unknown key 'example'"),
        ("prompt: '{passage}'\nexamples: a", "'examples' must be a list"),
        (
            "prompt: '{passage}'\nbase: poem",
            "poem.yaml: base='poem' is none of this package's types: claim, ",
        ),
        ("prompt: '{passage}'\nbase: [claim]", "is none of this package's types"),
        ("prompt: [", "no YAML"),
        ("- prompt", "'prompt' is missing"),
        ("prompt: 3", "'prompt' is missing or no text"),
    ],
)
def test_a_bad_prompt_file_is_named(tmp_path, content, message):
    (tmp_path / "poem.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        Prompt.load(str(tmp_path / "poem.yaml"))


@pytest.mark.parametrize("querytype", LAY)
def test_examples_of_other_words_than_the_passage_s_avoid_the_word_they_stand_behind(querytype):
    for example in Prompt.load(querytype).examples:
        avoided, _, query = example.partition(" => ")
        assert not content_words(avoided) & content_words(query), example
        assert clean.clean(query, Prompt.load(querytype).base, f"about {avoided}") == (query, "")


def test_a_type_is_cleaned_by_the_rules_of_its_base(tmp_path):
    (file := tmp_path / "riddle.yaml").write_text("prompt: 'Ask about {passage}'\nbase: question\n")
    types = ["lay_claim", "claim", "human", str(file), "of_a_file"]
    assert bases(types) == {"lay_claim": "claim", "riddle": "question"}
    assert "base" not in Prompt.load("lay_claim").asked and Prompt.load("claim").base == "claim"
    passages = Dataset.from_dict({"text": PASSAGES, "title": ["Kale", "Basalt", "Fen"]})
    table = raw(
        [
            (name, text, "stop")
            for name in ("lay_claim", "riddle", "keyword")
            for text in ("Is it a b?", "a b c d")
        ]
    )
    kept, dropped = clean.clean_table(table, passages, bases([*types, "keyword"]))
    assert list(zip(kept["querytype"], kept["text"], strict=True)) == [
        ("lay_claim", "a b c d"),
        ("riddle", "Is it a b?"),
        ("keyword", "Is it a b?"),
        ("keyword", "a b c d"),
    ]
    assert dropped["reason"][:] == ["wrong form"] * 2
    assert len(clean.clean_table(table, passages)[0]) == 6  # by rules of their own there are none


def test_a_type_without_a_prompt_names_those_there_are():
    with pytest.raises(InputError, match="no prompt for the query type 'poem'; there are: claim, .*web"):
        Prompt.load("poem")
    with pytest.raises(InputError, match="no prompt for the query type 'nowhere/poem.yaml'"):
        Prompt.load("nowhere/poem.yaml")


def test_sampled_passages_are_a_prefix_of_a_larger_sample():
    texts = ["text", " \n", "", *["text"] * 20]
    few, all_ = (draw.passages(texts, np.array([5, 6]), n, seed=0) for n in (4, None))
    assert few.tolist() == all_[:4].tolist()
    assert sorted(all_.tolist()) == [0, 3, 4, *range(7, 23)]
    with pytest.raises(InputError, match="generator.passages=0"):
        draw.passages(texts, np.array([]), 0, 0)
    with pytest.raises(InputError, match="every passage"):
        draw.passages(["", "a"], np.array([1]), None, 0)


def raw(rows: list[tuple[str, str, str]]) -> Dataset:
    columns = {
        "id": [str(i) for i in range(len(rows))],
        "text": [text for _, text, _ in rows],
        "querytype": [of for of, _, _ in rows],
        "source": [i % 3 for i in range(len(rows))],
        "finish": [finish for _, _, finish in rows],
    }
    return Dataset.from_dict(columns, features(RAW_QUERIES))


def test_what_cleaning_drops_is_counted_and_kept():
    passages = Dataset.from_dict({"text": PASSAGES, "title": ["Kale", "Basalt", "Fen"]})
    table = raw(
        [
            ("claim", '"Kale is eaten in winter."', "stop"),
            ("claim", "Is basalt a rock?", "stop"),
            ("claim", "", "context"),
            ("question", "什么是羽衣甘蓝?", "stop"),
            ("question", "The colour of basalt", "stop"),
            ("question", '{"question": "what is a fen?"}', "stop"),
            ("question", "what grows in a fen", "stop"),
            ("web", "как растёт капуста", "stop"),
            ("web", "basalt rock", "length"),
        ]
    )
    kept, dropped = clean.clean_table(table, passages)
    assert kept["text"] == ["Kale is eaten in winter.", "what grows in a fen", "basalt rock"]
    assert dict(zip(dropped["id"], dropped["reason"], strict=True)) == {
        "1": "wrong form",
        "2": "longer than the model's context",
        "3": "another script",
        "4": "wrong form",
        "5": "wrong form",
        "7": "another script",
    }
    assert dropped["text"][0] == "Is basalt a rock?"
    counted = clean.counts(table, dropped, heldout=np.array([2]))
    assert counted["claim"] == {"generated": 2, "cleaned": 1, "dropped": {"wrong form": 1}}
    assert counted["web"] == {"generated": 1, "cleaned": 0, "dropped": {"another script": 1}}
