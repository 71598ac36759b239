"""Pieces of text → OpenAI's completion and its chunks."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.dialects.chat.blocks_json import BlocksJson
from ocr_server.dialects.chat.response import ChatAnswer, Form
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.errors import EngineFailure, InvalidRequest
from ocr_server.output.artifacts import Product
from ocr_server.output.blocks import blocks
from ocr_server.reading.page import LogprobStep, PageDelta, PageReading, TokenLogprob
from ocr_server.reading.reader import Event, Piece
from tests.ocr_server.conftest import chat, delta, examples

COMMON = ["id", "object", "created", "model", "choices"]
FIRST = {"role": "assistant", "content": ""}


def answer(pages: int = 1, *, number: int = 0, form: Form = Form(separator="|"), **request: Any) -> ChatAnswer:  # noqa: B008
    return ChatAnswer(
        request=ChatCompletionRequest.model_validate(chat(**request)),
        numbers=[number] * pages,
        form=form,
        fingerprint="fp_0",
    )


def copied(times: int) -> Form:
    return Form(separator="|", copies=times)


def readings(*deltas: PageDelta | tuple[int, PageDelta]) -> list[PageReading]:
    """Of pieces of page 0, or of (page, piece)."""
    placed = [each if isinstance(each, tuple) else (0, each) for each in deltas]
    return [
        PageReading(page, page, 0, 640, 480, image_tokens=100 + page, deltas=[one for at, one in placed if at == page])
        for page in range(max(page for page, _ in placed) + 1)
    ]


async def events_of(pages: list[PageReading]) -> AsyncGenerator[Event]:
    for reading in pages:
        for each in reading.deltas:
            yield Piece(reading.index, each)
        yield reading


async def completed(chat: ChatAnswer, *deltas: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await chat.completion(events_of(readings(*deltas)))).model_dump_json())
    return found


async def chunks(chat: ChatAnswer, *deltas: Any) -> list[dict[str, Any]]:
    return [json.loads(chunk) async for chunk in chat.chunks(events_of(readings(*deltas)))]


HELLO = (delta("Hel"), delta("lo"), delta("", tokens=1, finish="stop"))


class TestCompletion:
    async def test_all_of_it(self) -> None:
        got = await completed(answer(), *HELLO)
        assert got.pop("id").startswith("chatcmpl-")
        assert abs(got.pop("created") - time.time()) < 60
        assert got == {
            "object": "chat.completion",
            "model": "deepseek-ocr",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 10,
                "completion_tokens": 3,
                "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 100},
            },
            "system_fingerprint": "fp_0",
        }

    async def test_ids_differ(self) -> None:
        assert (await completed(answer(), *HELLO))["id"] != (await completed(answer(), *HELLO))["id"]

    @pytest.mark.parametrize(
        ("ends", "reason"),
        [
            (["stop"], "stop"),
            (["length"], "length"),
            (["repetition"], "length"),
            (["stop", "stop"], "stop"),
            (["length", "stop"], "length"),
            (["stop", "length"], "length"),
            (["repetition", "length", "stop"], "length"),
        ],
    )
    async def test_how_it_ended(self, ends: list[str], reason: str) -> None:
        deltas = [(page, delta("x", finish=end)) for page, end in enumerate(ends)]
        whole = await completed(answer(len(ends)), *deltas)
        assert whole["choices"][0]["finish_reason"] == reason
        streamed = await chunks(answer(len(ends), stream=True), *deltas)
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in streamed]
        assert reasons == [None] * (len(reasons) - 1) + [reason]

    async def test_each_choice_ends_for_itself(self) -> None:
        deltas = [delta("a", choice=0, finish="stop"), delta("b", choice=1, finish="length")]
        got = await completed(answer(n=2, temperature=1.0), *deltas)
        assert [
            (choice["index"], choice["message"]["content"], choice["finish_reason"]) for choice in got["choices"]
        ] == [
            (0, "a", "stop"),
            (1, "b", "length"),
        ]

    async def test_usage_is_summed_over_pages_and_choices(self) -> None:
        deltas = [
            (page, delta("x", choice=choice, tokens=10 ** (2 * page + choice), prompt_tokens=50 + page, finish="stop"))
            for page in range(2)
            for choice in range(2)
        ]
        got = await completed(answer(2, n=2, temperature=1.0), *deltas)
        assert got["usage"] == {
            "prompt_tokens": 101,
            "completion_tokens": 1111,
            "total_tokens": 1212,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 201},
        }

    async def test_copies_cost_nothing(self) -> None:
        got = await completed(answer(n=3, form=copied(3)), *HELLO)
        assert [choice["message"]["content"] for choice in got["choices"]] == ["Hello"] * 3
        assert [choice["index"] for choice in got["choices"]] == [0, 1, 2]
        assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (10, 3)

    async def test_an_empty_answer(self) -> None:
        got = await completed(answer(), delta("", finish="stop"))
        assert got["choices"][0]["message"]["content"] == ""


class TestChunks:
    async def test_as_openai_sends_them(self) -> None:
        got = await chunks(answer(stream=True), *HELLO)
        assert [list(chunk) for chunk in got] == [[*COMMON, "system_fingerprint"]] * 4
        assert [chunk["choices"] for chunk in got] == [
            [{"index": 0, "delta": FIRST, "logprobs": None, "finish_reason": None}],
            [{"index": 0, "delta": {"content": "Hel"}, "logprobs": None, "finish_reason": None}],
            [{"index": 0, "delta": {"content": "lo"}, "logprobs": None, "finish_reason": None}],
            [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}],
        ]
        assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
        for key in ("id", "created", "model", "system_fingerprint"):
            assert len({chunk[key] for chunk in got}) == 1

    async def test_with_usage(self) -> None:
        got = await chunks(answer(stream=True, stream_options={"include_usage": True}), *HELLO)
        assert [set(chunk) for chunk in got] == [{*COMMON, "usage", "system_fingerprint"}] * 5
        assert [chunk["usage"] for chunk in got[:-1]] == [None] * 4
        assert got[-1]["choices"] == []
        assert got[-1]["usage"] == {
            "prompt_tokens": 10,
            "completion_tokens": 3,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 100},
        }

    @pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
    async def test_without_usage(self, options: Any) -> None:
        got = await chunks(answer(stream=True, stream_options=options), *HELLO)
        assert all("usage" not in chunk for chunk in got)
        assert all(len(chunk["choices"]) == 1 for chunk in got)

    async def test_the_role_of_every_choice_comes_first(self) -> None:
        deltas = [delta("a", choice=choice, finish="stop") for choice in (1, 0, 2)]
        got = [chunk["choices"][0] for chunk in await chunks(answer(stream=True, n=3, temperature=1.0), *deltas)]
        assert [(choice["index"], choice["delta"]) for choice in got[:3]] == [(index, FIRST) for index in range(3)]
        assert [(choice["index"], choice["delta"]) for choice in got[3:]] == [
            *((index, {"content": "a"}) for index in (1, 0, 2)),
            *((index, {}) for index in range(3)),
        ]

    async def test_nothing_before_the_first_piece(self) -> None:
        """Until then an error can still have a status of its own."""

        async def broken() -> AsyncGenerator[Event]:
            raise ValueError("early")
            yield

        with pytest.raises(ValueError, match="early"):
            await anext(answer(stream=True).chunks(broken()))

    async def test_a_page_that_ends_does_not_end_the_answer(self) -> None:
        got = await chunks(
            answer(2, stream=True), (0, delta("a", finish="stop")), (1, delta("b")), (1, delta(finish="stop"))
        )
        assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [None, None, None, "stop"]

    async def test_pieces_without_text_make_no_chunk(self) -> None:
        got = await chunks(answer(stream=True), delta(""), delta("a"), delta(""), delta("", finish="length"))
        assert [chunk["choices"][0]["delta"] for chunk in got] == [FIRST, {"content": "a"}, {}]

    async def test_copies(self) -> None:
        request = {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        got = await chunks(answer(form=copied(2), **request), *HELLO)
        assert [chunk["choices"][0]["finish_reason"] for chunk in got[-3:-1]] == ["stop", "stop"]
        assert got[-1]["usage"]["completion_tokens"] == 3

    async def test_closing_it_closes_its_source(self) -> None:
        closed = []

        async def source() -> AsyncGenerator[Event]:
            try:
                while True:
                    yield Piece(0, delta("x"))
            finally:
                closed.append(True)

        stream = answer(stream=True).chunks(source())
        await anext(stream)
        await stream.aclose()
        assert closed


class TestLogprobs:
    STEP = LogprobStep(
        TokenLogprob("é", -0.5), [TokenLogprob("é", -0.5), TokenLogprob("b", -1.0), TokenLogprob("c", -math.inf)]
    )

    async def test_conversion(self) -> None:
        got = await completed(answer(logprobs=True, top_logprobs=3), delta("é", logprobs=[self.STEP], finish="stop"))
        assert got["choices"][0]["logprobs"] == {
            "content": [
                {
                    "token": "é",
                    "logprob": -0.5,
                    "bytes": [0xC3, 0xA9],
                    "top_logprobs": [
                        {"token": "é", "logprob": -0.5, "bytes": [0xC3, 0xA9]},
                        {"token": "b", "logprob": -1.0, "bytes": [98]},
                        {"token": "c", "logprob": -9999.0, "bytes": [99]},
                    ],
                }
            ],
            "refusal": None,
        }

    async def test_an_impossible_token_that_was_chosen(self) -> None:
        step = LogprobStep(TokenLogprob("a", -math.inf), [])
        (token,) = (await completed(answer(logprobs=True), delta("a", logprobs=[step], finish="stop")))["choices"][0][
            "logprobs"
        ]["content"]
        assert token["logprob"] == -9999.0

    @pytest.mark.parametrize(("asked", "given"), [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 2}, 2)])
    async def test_as_many_alternatives_as_asked_for(self, asked: dict[str, int], given: int) -> None:
        piece = delta("é", logprobs=[self.STEP], finish="stop")
        for chunk in (
            await completed(answer(logprobs=True, **asked), piece),
            (await chunks(answer(stream=True, logprobs=True, **asked), piece))[1],
        ):
            assert len(chunk["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == given

    async def test_all_steps_of_all_pages(self) -> None:
        steps = [(page, delta("é", logprobs=[self.STEP] * (page + 1), finish="stop")) for page in range(3)]
        got = await completed(answer(3, logprobs=True), *steps)
        assert len(got["choices"][0]["logprobs"]["content"]) == 6

    async def test_a_step_without_text_is_not_lost(self) -> None:
        got = await chunks(
            answer(stream=True, logprobs=True), delta("", logprobs=[self.STEP]), delta("é", finish="stop")
        )
        assert [chunk["choices"][0]["logprobs"] is not None for chunk in got] == [False, True, False, False]
        assert got[1]["choices"][0]["delta"] == {"content": ""}


class TestPages:
    """Several pages, and what is said of each."""

    ENDS = (
        (0, delta("a", finish="stop")),
        (1, delta("b")),
        (1, delta("c", finish="stop")),
        (2, delta("", finish="stop")),
    )

    async def test_the_separator_stands_between_them(self) -> None:
        got = await completed(answer(3), *self.ENDS)
        assert got["choices"][0]["message"]["content"] == "a|bc|"

    async def test_it_comes_with_the_page_after_it(self) -> None:
        got = await chunks(answer(3, stream=True), *self.ENDS)
        assert [chunk["choices"][0]["delta"].get("content") for chunk in got] == ["", "a", "|b", "c", "|", None]

    async def test_each_choice_has_its_own(self) -> None:
        deltas = [
            (0, delta("a", choice=0, finish="stop")),
            (0, delta("A", choice=1, finish="stop")),
            (1, delta("B", choice=1)),
            (1, delta("b", choice=0, finish="stop")),
            (1, delta("B", choice=1, finish="stop")),
        ]
        got = await completed(answer(2, n=2, temperature=1.0), *deltas)
        assert [choice["message"]["content"] for choice in got["choices"]] == ["a|b", "A|BB"]

    async def test_nothing_is_said_unless_asked(self) -> None:
        assert "ocr" not in (await completed(answer(3), *self.ENDS))["choices"][0]["message"]
        got = await chunks(answer(3, stream=True), *self.ENDS)
        assert all("ocr" not in chunk["choices"][0]["delta"] for chunk in got)

    async def test_reports(self) -> None:
        form = Form(separator="|", reports=True)
        got = await completed(answer(2, form=form), (0, delta("a", finish="stop")), (1, delta("b", finish="length")))
        reports = got["choices"][0]["message"]["ocr"]["pages"]
        assert reports == [
            {
                "index": page,
                "source": page,
                "page": 1,
                "width": 640,
                "height": 480,
                "finish_reason": finish,
                "prompt_tokens": 10,
                "completion_tokens": 1,
            }
            for page, finish in enumerate(("stop", "length"))
        ]
        streamed = await chunks(
            answer(2, form=form, stream=True), (0, delta("a", finish="stop")), (1, delta("b", finish="length"))
        )
        deltas = [chunk["choices"][0]["delta"] for chunk in streamed]
        assert [list(each) for each in deltas] == [["role", "content"], ["content"], ["ocr"], ["content"], ["ocr"], []]
        assert [each["ocr"]["pages"][0] for each in deltas if "ocr" in each] == reports

    async def test_a_page_that_failed_keeps_its_place(self) -> None:
        failed = PageReading(1, 1, 4, error=InvalidRequest("It is torn.", code="torn"))
        first, third = readings((0, delta("a", finish="stop")), (2, delta("c", finish="stop")))[::2]
        chat = answer(3, form=Form(separator="|", reports=True))
        got = json.loads((await chat.completion(events_of([first, failed, third]))).model_dump_json())
        (choice,) = got["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("a||c", "length")
        report = choice["message"]["ocr"]["pages"][1]
        assert (report["page"], report["finish_reason"]) == (5, "error")
        assert report["error"] == {"message": "It is torn.", "code": "torn"}

    async def test_an_engine_that_says_nothing_has_failed(self) -> None:
        with pytest.raises(EngineFailure):
            await answer().completion(events_of([PageReading(0, 0, 0)]))


SAID = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 499]]<|/det|>\n# Hi\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>"
)


def located() -> PageReading:
    reading = PageReading(0, 0, 6, 200, 100, deltas=[delta(SAID[:40]), delta(SAID[40:], finish="stop")])
    reading.product = Product(blocks(SAID, 200, 100), [], [], None)
    return reading


class TestForms:
    async def test_markdown_has_no_markers_and_links_figures(self) -> None:
        chat = answer(number=6, form=Form(separator="|", markdown=True))
        got = await chat.completion(events_of([located()]))
        assert got.choices[0].message.content == "# Hi\n\n![](images/page-7-figure-1.jpeg)"

    async def test_markdown_in_a_stream_is_the_same(self) -> None:
        chat = answer(number=6, stream=True, form=Form(separator="|", markdown=True))
        got = [json.loads(chunk) async for chunk in chat.chunks(events_of([located()]))]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got)
        assert text == "# Hi\n\n![](images/page-7-figure-1.jpeg)"

    async def test_blocks_stand_beside_it(self) -> None:
        chat = answer(form=Form(separator="|", markdown=True, reports=True))
        got = json.loads((await chat.completion(events_of([located()]))).model_dump_json())
        (page,) = got["choices"][0]["message"]["ocr"]["pages"]
        assert page["blocks"] == [
            {"label": "title", "text": "# Hi", "boxes": [[0, 0, 200, 49]], "model_boxes": [[0, 0, 999, 499]]},
            {"label": "image", "text": "", "boxes": [[0, 50, 200, 100]], "model_boxes": [[0, 500, 999, 999]]},
        ]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_blocks_as_json(self, stream: bool) -> None:
        schema = {
            "properties": {"pages": {"type": "array", "items": {"$ref": "#/$defs/P"}}},
            "$defs": {
                "P": {
                    "properties": {
                        "page": {"type": "integer"},
                        "blocks": {"anyOf": [{"items": {"properties": {"label": {}}}}, {"type": "null"}]},
                    }
                }
            },
        }
        chat = answer(2, stream=stream, form=Form(separator="|", reports=True, json=BlocksJson(schema)))
        second = located()
        second.index = 1
        events = events_of([located(), second])
        if stream:
            got = [json.loads(chunk) async for chunk in chat.chunks(events)]
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got)
        else:
            text = (await chat.completion(events)).choices[0].message.content
        page = {"page": 7, "blocks": [{"label": "title"}, {"label": "image"}]}
        assert json.loads(text) == {"pages": [page, page]}

    @pytest.mark.parametrize("wanted", ["colour", "pages"])
    def test_a_schema_that_asks_for_what_is_not_there(self, wanted: str) -> None:
        item = {"properties": {"smell": {}}}
        with pytest.raises(InvalidRequest, match="smell" if wanted == "pages" else wanted) as caught:
            BlocksJson({"properties": {wanted: {"items": item}}})
        assert caught.value.param == "response_format.json_schema.schema"

    def test_a_schema_that_turns_in_circles(self) -> None:
        with pytest.raises(InvalidRequest, match=r"pages\.pages"):
            BlocksJson({"properties": {"pages": {"$ref": "#"}}})
        circle = {"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}
        assert BlocksJson(circle).keep({"pages": []}) == {"pages": []}


class TestWholeEqualsStream:
    @given(
        pages=st.integers(1, 3),
        texts=st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=4), min_size=9, max_size=9),
        ends=st.lists(st.sampled_from(["stop", "length", "repetition"]), min_size=9, max_size=9),
        choices=st.integers(1, 3),
        greedy=st.booleans(),
        with_logprobs=st.booleans(),
    )
    @examples(100)
    def test_whatever_the_pieces(
        self, pages: int, texts: list[list[str]], ends: list[str], choices: int, greedy: bool, with_logprobs: bool
    ) -> None:
        deltas: list[tuple[int, PageDelta]] = []
        for page in range(pages):
            for choice in range(1 if greedy else choices):
                pieces, end = texts[page * 3 + choice], ends[page * 3 + choice]
                for place, words in enumerate(pieces):
                    steps = [LogprobStep(TokenLogprob(words, -float(place)), [])] if with_logprobs else None
                    finish = end if place == len(pieces) - 1 else None
                    deltas.append((page, delta(words, choice=choice, finish=finish, logprobs=steps)))
        request = {"n": choices, "temperature": 0.0 if greedy else 1.0, "logprobs": with_logprobs}
        copies = choices if greedy else 1
        whole = asyncio.run(completed(answer(pages, form=copied(copies), **request), *deltas))
        streaming = answer(pages, form=copied(copies), stream=True, stream_options={"include_usage": True}, **request)
        *stream, last = asyncio.run(chunks(streaming, *deltas))
        assert last["usage"] == whole["usage"]
        for choice in whole["choices"]:
            own = [each for chunk in stream for each in chunk["choices"] if each["index"] == choice["index"]]
            assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
            assert own[0]["delta"]["role"] == choice["message"]["role"]
            assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
            tokens = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
            assert tokens == (choice["logprobs"]["content"] if choice["logprobs"] else [])
