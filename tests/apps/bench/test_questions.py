"""Question files: what is read, and what is refused by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mirror_edge.apps.bench.questions import SHIPPED, choose, read
from mirror_edge.errors import DataError

GOOD: dict[str, Any] = {"question_id": 1, "category": "qa", "turns": ["Why?"]}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_questions_are_read_in_order_with_fields_that_nobody_uses(tmp_path: Path) -> None:
    lines = [
        {**GOOD, "reference": ["Because."]},
        "",
        {"question_id": 81, "category": "coding", "turns": ["Write.", "Shorter\u2028, please."]},
    ]
    found = read(write(tmp_path / "q.jsonl", *lines))
    assert [(q.number, q.line, q.group) for q in found] == [(1, 1, "qa"), (81, 3, "mt_bench")]
    assert found[1].turns == ("Write.", "Shorter\u2028, please.")


def test_a_limit_is_of_each_group() -> None:
    shipped = read(SHIPPED)
    chosen, passed = choose(shipped, 1, lambda _: True)
    groups = [question.group for question in chosen]
    assert groups == ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"]
    assert passed == []
    assert choose(shipped, None, lambda _: True) == (shipped, [])


def test_a_question_that_does_not_fit_makes_room_for_the_next_of_its_group() -> None:
    shipped = read(SHIPPED)
    chosen, passed = choose(shipped, 1, lambda question: question.number != 3)
    assert [question.number for question in passed] == [3]
    assert [question.number for question in chosen] == [1, 4, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ([1], "is not an object"),
        ({"category": "qa", "turns": ["a"]}, "question_id is missing"),
        ({**GOOD, "question_id": "one"}, "question_id is 'one'"),
        ({**GOOD, "question_id": True}, "question_id is True"),
        (GOOD, "question_id 1 is already on line 1"),
        ({**GOOD, "question_id": 2, "category": ""}, "category is ''"),
        ({**GOOD, "question_id": 2, "turns": []}, "turns is []"),
        ({**GOOD, "question_id": 2, "turns": "Why?"}, "turns is 'Why?'"),
        ({**GOOD, "question_id": 2, "turns": ["Why?", " "]}, "turns has ' '"),
    ],
)
def test_a_broken_line_is_refused_by_number(tmp_path: Path, line: object, said: str) -> None:
    path = write(tmp_path / "q.jsonl", GOOD, line)
    with pytest.raises(DataError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}, line 2: {said}")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no questions"):
        read(write(tmp_path / "q.jsonl", ""))
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "nowhere.jsonl")
