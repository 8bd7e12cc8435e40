"""A language model that judges queries: what it is asked, how its answer is read, and that it is asked once."""

import pytest

from dense_retrieval.memo import Memo
from dense_retrieval.queries.generate import Completion
from dense_retrieval.queries.judge import NOT_ANSWERED, NOT_READ, UNCLEAR, judge, question, reason


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("yes", ""),
        (" Yes.\n", ""),
        ("**YES**", ""),
        ("no", NOT_ANSWERED),
        ("No.", NOT_ANSWERED),
        ("", UNCLEAR),
        ("Yes, the passage", UNCLEAR),
        ("not", UNCLEAR),
        ("yes no", UNCLEAR),
        ("The answer is yes", UNCLEAR),
        ("5", UNCLEAR),
    ],
)
def test_yes_and_no_alone_are_understood(answer, why):
    for finish in ("stop", "length"):
        assert reason(Completion(answer, finish, 9, 1)) == why
    assert reason(Completion("yes", "context", 0, 0)) == NOT_READ


def test_all_questions_about_a_passage_begin_alike():
    asked = [question("Kale {passage} is green.", query) for query in ("what is kale", "{query} is red")]
    heads = {request.text[: request.shared] for request in asked}
    assert heads == {"Passage: Kale {passage} is green.\n\n"}
    assert "Query: {query} is red\n" in asked[1].text and asked[0].seed == asked[1].seed


class Reader:
    """Says yes where the query's last word stands in the passage."""

    at_once = 2

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, requests):
        for position, request in enumerate(requests):
            self.asked += 1
            passage, query = request.text.split("\n")[:3:2]
            answer = "Yes." if query.split()[-1] in passage else "No"
            yield position, Completion(answer, "stop", 9, 1)


def test_a_pair_is_judged_once(tmp_path, caplog):
    queries, passages = ["what is kale", "is it red", "is it green"], ["kale is green"] * 3
    reader = Reader()
    with Memo(tmp_path / "memo") as memo, caplog.at_level("INFO"):
        assert judge(reader, memo, queries, passages) == ["", NOT_ANSWERED, ""]
        assert judge(reader, memo, queries[::-1], passages) == ["", NOT_ANSWERED, ""]
        assert reader.asked == 3
        assert judge(reader, memo, ["is it green"], ["basalt is black"]) == [NOT_ANSWERED]
    assert reader.asked == 4
    assert "judgements from the language model: 3 to write, 0 are there" in caplog.messages
