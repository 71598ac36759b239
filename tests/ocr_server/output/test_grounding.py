"""Markers in answers of the model: complete, in pieces and incomplete."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocr_server.output.grounding import LONGEST, GroundingParser, Located, parse
from tests.ocr_server.conftest import examples
from tests.ocr_server.output.answers import PAGE, answers, in_pieces, marker, takes_linear_time

GOOD = "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>"

# A second, independent definition of a marker: too slow for malicious answers, but correct for short ones.
_NUMBER = r"\s*-?[0-9]{1,5}(?:\.[0-9]+)?\s*"
_BOX = rf"\s*\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]\s*"
_MARKER = re.compile(
    r"<\|ref\|>((?:(?!<\|/?(?:ref|det)\|>).)*)<\|/ref\|>\s*<\|det\|>"
    rf"(\s*\[{_BOX}(?:,{_BOX})*\]\s*)<\|/det\|>",
    re.DOTALL | re.ASCII,
)


def raw(event: str | Located) -> str:
    return event if isinstance(event, str) else event.raw


def merged(events: list[str | Located]) -> list[str | Located]:
    whole: list[str | Located] = []
    for event in events:
        if isinstance(event, str) and whole and isinstance(whole[-1], str):
            whole[-1] += event
        else:
            whole.append(event)
    return whole


def read(pieces: list[str]) -> list[str | Located]:
    parser = GroundingParser()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.close()


@cache
def may_become_a_marker(held: str) -> bool:
    """Whether some end of a marker completes `held`."""
    completed = (parse(held + GOOD[at:]) for at in range(len(GOOD)))
    return any(len(events) == 1 and isinstance(events[0], Located) for events in completed)


class TestMarkers:
    def test_a_page(self) -> None:
        title, heading, text, _, image, *_ = parse(PAGE)
        assert title == Located("title", ((80, 50, 900, 100),), marker("title", (80, 50, 900, 100)))
        assert heading == "\n# A heading \n\n"
        assert isinstance(text, Located)
        assert isinstance(image, Located)
        assert (text.ref, image.ref) == ("text", "image")

    def test_nothing(self) -> None:
        assert parse("") == []

    def test_text_alone(self) -> None:
        assert parse("just text") == ["just text"]

    @pytest.mark.parametrize(
        ("coordinates", "boxes"),
        [
            ("[[0, 0, 999, 999]]", ((0, 0, 999, 999),)),
            ("[[1,2,3,4],[5,6,7,8]]", ((1, 2, 3, 4), (5, 6, 7, 8))),
            (" [ [\t1 ,\n2, 3 , 4 ] , [5,6,7,8] ] ", ((1, 2, 3, 4), (5, 6, 7, 8))),
            ("[[12.5, 12.49, 0.4, 99999.0]]", ((13, 12, 0, 99999),)),
            ("[[-1, -0, -12.5, 007]]", ((-1, 0, -13, 7),)),
            (f"[[1, 2, 3, 4.{'9' * 5000}]]", ((1, 2, 3, 5),)),
        ],
    )
    def test_coordinates(self, coordinates: str, boxes: object) -> None:
        whole = f"<|ref|>a<|/ref|><|det|>{coordinates}<|/det|>"
        assert parse(f"x{whole}y") == ["x", Located("a", boxes, whole), "y"]

    @pytest.mark.parametrize(
        "coordinates",
        [
            "", "[]", "[[]]", "1, 2, 3, 4", "[1, 2, 3, 4]", "[[1, 2, 3]]", "[[1, 2, 3, 4, 5]]", "[[1, 2, 3, 4]",
            "[[1, 2, 3, 4],]", "[[1, 2, 3, 4][5, 6, 7, 8]]", "[[1, 2, 3, 4]]]", "[[[1, 2, 3, 4]]]", "[[1 2 3 4]]",
            "[[1, 2, 3, 123456]]", "[[1, 2, 3, 4.]]", "[[1, 2, 3, .5]]", "[[1, 2, 3, - 4]]", "[[1, 2, 3, +4]]",
            "[[1, 2, 3, 1e3]]", "[[1, 2, 3, ４]]", "[[1, 2, 3, 0x4]]", "[[1, 2, 3, 1 2]]", "[[1, 2, 3, --4]]",
            "[[1,, 2, 3, 4]]", "((1, 2, 3, 4))", "[[1, 2, 3, __import__('os')]]", "[[1, 2, 3, 4]] x",
        ],
    )  # fmt: skip
    def test_bad_coordinates_are_text(self, coordinates: str) -> None:
        whole = f"<|ref|>a<|/ref|><|det|>{coordinates}<|/det|>"
        assert parse(f"{whole} {GOOD}") == [f"{whole} ", Located("a", ((1, 2, 3, 4),), GOOD)]

    @pytest.mark.parametrize(
        "torn",
        [
            "<|ref|>", "<|ref|>a", "<|ref|>a<|/ref|>", "<|ref|>a<|/ref|> ", "<|ref|>a<|/ref|><|det|>",
            "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]", "<|ref|>a<|/ref|>b<|det|>[[1, 2, 3, 4]]<|/det|>",
            "<|ref|>a<|/ref|><|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", "<|ref|>a<|det|>[[1, 2, 3, 4]]<|/det|>",
            "<|det|>[[1, 2, 3, 4]]<|/det|>", "<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", "<|REF|>a<|/REF|>",
            "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|det|>", "<|ref|>a<|/det|><|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
        ],
    )  # fmt: skip
    def test_incomplete_markers_are_text(self, torn: str) -> None:
        assert parse(torn) == [torn]
        assert parse(torn + GOOD) == [torn, Located("a", ((1, 2, 3, 4),), GOOD)]

    def test_the_inner_one_of_nested_markers_is_a_marker(self) -> None:
        assert parse(f"<|ref|>outer {GOOD}<|/ref|>") == [
            "<|ref|>outer ",
            Located("a", ((1, 2, 3, 4),), GOOD),
            "<|/ref|>",
        ]

    @pytest.mark.parametrize(
        ("ref", "gap", "space", "is_marker"),
        [
            (LONGEST, 0, 0, True),
            (LONGEST + 1, 0, 0, False),
            (1, LONGEST, 0, True),
            (1, LONGEST + 1, 0, False),
            (1, 0, LONGEST - len("[[1,2,3,4]]"), True),
            (1, 0, LONGEST - len("[[1,2,3,4]]") + 1, False),
        ],
    )
    @pytest.mark.parametrize("size", [1, 7, 1_000_000])
    def test_the_maximum_length(self, ref: int, gap: int, space: int, is_marker: bool, size: int) -> None:
        whole = f"<|ref|>{'a' * ref}<|/ref|>{' ' * gap}<|det|>[[1,2,3,4{' ' * space}]]<|/det|>"
        events = merged(read([whole[at : at + size] for at in range(0, len(whole), size)]))
        assert [isinstance(event, Located) for event in events] == [is_marker]
        assert raw(events[0]) == whole


class TestAnyAnswer:
    @pytest.mark.slow
    @given(answer=answers)
    @example(answer=GOOD * 2)
    @examples(500)
    def test_markers_are_those_of_the_regular_expression(self, answer: str) -> None:
        refs = [(match[0], match[1]) for match in _MARKER.finditer(answer)]
        assert [(event.raw, event.ref) for event in parse(answer) if isinstance(event, Located)] == refs

    @given(pieces=in_pieces())
    @examples(500)
    def test_nothing_is_lost_and_pieces_make_no_difference(self, pieces: list[str]) -> None:
        events = read(pieces)
        assert "".join(map(raw, events)) == "".join(pieces)
        assert "" not in events
        assert merged(events) == parse("".join(pieces)) == merged(read(list("".join(pieces))))

    @given(answer=answers)
    @example(answer="<|ref|>a<|/ref|> x")
    @example(answer="<|ref|>a<|/ref|><|det|>[[1, x")
    @example(answer="<|ref|>a<|/ref|><|det|>[[1, 2, 3]")
    @example(answer="<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]<")
    @example(answer="<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]<|/ref|>")
    @examples(100)
    def test_only_possible_markers_are_held_back(self, answer: str) -> None:
        parser, given_out = GroundingParser(), 0
        for fed, char in enumerate(answer, 1):
            given_out += sum(len(raw(event)) for event in parser.feed(char))
            held = answer[given_out:fed]
            assert not held or may_become_a_marker(held)

    def test_a_parser_can_be_used_again(self) -> None:
        parser = GroundingParser()
        assert parser.feed("a<|ref|>b") + parser.close() == ["a", "<|ref|>b"]
        assert parser.feed(GOOD) + parser.close() == [Located("a", ((1, 2, 3, 4),), GOOD)]


@pytest.mark.slow
class TestTime:
    @pytest.mark.parametrize(
        "unit",
        ["<|ref|>", "<|ref|>a<|/ref|>", "<|ref|>a<|/ref|><|det|>", "<|ref|>a<|/ref|><|det|>[[1, ", "<|", " ", "["],
    )
    @pytest.mark.parametrize("start", ["", "<|ref|>", "<|ref|>a<|/ref|>", "<|ref|>a<|/ref|><|det|>[[1,2,3,4.0"])
    def test_malicious_answers_take_linear_time(self, start: str, unit: str) -> None:
        def work(size: int) -> None:
            answer = start + unit * size
            assert "".join(map(raw, parse(answer))) == answer

        assert takes_linear_time(work, 60_000)

    @pytest.mark.parametrize("unit", ["<|ref|>", "<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4], ", "0"])
    def test_in_small_pieces_too(self, unit: str) -> None:
        def work(size: int) -> None:
            answer = "<|ref|>a<|/ref|><|det|>[[1,2,3,4.0" + unit * (size // len(unit))
            assert "".join(map(raw, read(list(answer)))) == answer

        assert takes_linear_time(work, 200_000)


@given(st.text())
@examples(200)
def test_any_string(answer: str) -> None:
    assert "".join(map(raw, parse(answer))) == answer
