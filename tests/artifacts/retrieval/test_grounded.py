"""A question of a conversation with passages in front: which are looked for, and which fit."""

from __future__ import annotations

import pytest

from pocketphi.artifacts.retrieval.grounded import Messages, grounded
from pocketphi.artifacts.retrieval.index import Index, write_index
from pocketphi.artifacts.retrieval.passages import Passage
from pocketphi.artifacts.retrieval.prompt import INTRODUCTION, question_of, with_passages

BOAT = Passage("boats.md", "line 3", "", "A blue boat costs nine.")
FERRY = Passage("harbour.md", "line 5", "", "The ferry leaves at six.")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    path = tmp_path_factory.mktemp("index") / "index"
    write_index(path, [BOAT, FERRY], "0")
    return Index.open(path)


def encode(messages: Messages) -> str:
    return "".join(content for _, content in messages)


def test_a_short_question_leans_on_the_one_before_it(index: Index) -> None:
    assert grounded(index, "And blue ones?", (), encode, 2048).passages == (BOAT,)
    said: Messages = [("user", "When does the ferry leave?"), ("assistant", "At six, as boats do.")]
    assert set(grounded(index, "And blue ones?", said, encode, 2048).passages) == {BOAT, FERRY}
    with_its_own = [("user", with_passages("When does the ferry leave?", [BOAT])), said[1]]
    assert grounded(index, "In winter?", with_its_own, encode, 2048).passages == (FERRY,)
    long = "Please describe blue boats, yellow engines, cranes"
    assert grounded(index, long, said, encode, 2048).passages == (BOAT,)


def test_earlier_questions_lose_their_passages_where_there_is_no_room(index: Index) -> None:
    said = [("system", INTRODUCTION), ("user", with_passages("Which?", [BOAT] * 8)), ("assistant", INTRODUCTION)]
    asked = "When does the ferry leave in the coldest winter?"
    enough = grounded(index, asked, said, encode, 2048)
    assert (enough.passages, enough.messages) == ((FERRY,), said)
    tight = grounded(index, asked, said, encode, 700)
    assert (tight.passages, tight.messages) == ((FERRY,), [said[0], ("user", "Which?"), said[2]])
    none = grounded(index, asked, said, encode, 120)
    assert (none.message, none.passages) == (asked, ())


@pytest.mark.parametrize("question", ["a", "", "a\n\nb", "Question: a"])
def test_the_question_of_a_message(question: str) -> None:
    assert question_of(question) == question
    assert question_of(with_passages(question, [BOAT, FERRY])) == question
