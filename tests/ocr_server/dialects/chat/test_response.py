"""`ChatAnswer`: what a reader yields becomes OpenAI's completion, or its chunks."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocr_server.dialects.chat.response import ChatAnswer
from ocr_server.dialects.chat.wire import ChatCompletionRequest
from ocr_server.dialects.messages import NOTHING_TO_READ
from ocr_server.errors import EngineFailure, InvalidRequest
from ocr_server.output.artifacts import PageArtifacts
from ocr_server.output.blocks import blocks
from ocr_server.output.formats import FORMATS
from ocr_server.reading.page import LogprobStep, PageDelta, PageReading, ScoredToken
from ocr_server.reading.reader import Event, Opened, Piece
from tests.ocr_server.conftest import CHAT, FakeEngine, chat, delta, error_of, events, examples, message, picture
from tests.ocr_server.dialects.sessions import events_of, replayed

COMMON = ["id", "object", "created", "model", "choices"]
FIRST = {"role": "assistant", "content": ""}


def answer(
    events: AsyncGenerator[Event] | Sequence[PageReading],
    *,
    pages: int = 1,
    number: int = 0,
    is_document: bool = False,
    show_pages: bool = False,
    ocr: dict[str, Any] | None = None,
    **fields: Any,
) -> ChatAnswer:
    """The answer to a request for that many pictures.

    Args:
        events: What the reader yields, or the pages that it has read.
        number: Index of each page in its document, from 0.
        fields: Further fields of the request.
    """
    body = chat(message(*[picture()] * pages), ocr={"page_separator": "|", **(ocr or {})}, **fields)
    session = replayed(
        events_of(events) if isinstance(events, Sequence) else events,
        indices=[[number]] * pages,
        is_document=is_document,
        show_pages=show_pages,
        text=FORMATS[(ocr or {}).get("output", "raw")],
    )
    return ChatAnswer(ChatCompletionRequest.model_validate(body), session, "fp_0")


def readings(*deltas: PageDelta | tuple[int, PageDelta]) -> list[PageReading]:
    """Of pieces of page 0, or of (page, piece)."""
    placed = [each if isinstance(each, tuple) else (0, each) for each in deltas]
    return [
        PageReading(page, page, 0, 640, 480, image_tokens=100 + page, deltas=[one for at, one in placed if at == page])
        for page in range(max(page for page, _ in placed) + 1)
    ]


async def whole(of: ChatAnswer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((await of.completion()).model_dump_json())
    return found


async def streamed(of: ChatAnswer) -> list[dict[str, Any]]:
    return [json.loads(chunk) async for chunk in of.chunks()]


async def completed(*deltas: Any, **options: Any) -> dict[str, Any]:
    """The completion made of these pieces, to a request with these options of `answer`."""
    return await whole(answer(readings(*deltas), **options))


async def chunks(*deltas: Any, **options: Any) -> list[dict[str, Any]]:
    """The same in chunks."""
    return await streamed(answer(readings(*deltas), stream=True, **options))


HELLO = (delta("Hel"), delta("lo"), delta("", tokens=1, finish="stop"))


class TestNothingToRead:
    """Many tools test a connection with a request without a picture."""

    @pytest.mark.parametrize("more", [{}, {"n": 2}, {"model": "deepseek-ocr:blocks"}])
    async def test_a_sentence(self, client: httpx.AsyncClient, more: dict[str, Any]) -> None:
        response = await client.post(CHAT, json=chat(message("ping"), **more))
        assert response.status_code == 200
        got = response.json()
        assert got["object"] == "chat.completion"
        assert [choice["message"]["content"] for choice in got["choices"]] == [NOTHING_TO_READ] * more.get("n", 1)
        assert {choice["finish_reason"] for choice in got["choices"]} == {"stop"}
        assert "ocr" not in got["choices"][0]["message"]
        assert got["usage"]["total_tokens"] == 0

    async def test_in_a_stream(self, client: httpx.AsyncClient) -> None:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        response = await client.post(CHAT, json=chat(message("ping"), **options))
        *got, done = events(response.text)
        assert done == "[DONE]"
        assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": NOTHING_TO_READ}
        assert got[1]["choices"][0]["finish_reason"] == "stop"
        assert (got[2]["choices"], got[2]["usage"]["total_tokens"]) == ([], 0)

    async def test_only_while_pages_can_be_read(self, client: httpx.AsyncClient, engine: FakeEngine) -> None:
        engine.reason = "The model is being loaded."
        error_of(await client.post(CHAT, json=chat(message("ping"))), 503)


class TestCompletion:
    async def test_a_whole_completion(self) -> None:
        before = int(time.time())
        got = await completed(*HELLO)
        assert got.pop("id").startswith("chatcmpl-")
        assert before <= got.pop("created") <= time.time()
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
        assert (await completed(*HELLO))["id"] != (await completed(*HELLO))["id"]

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
    async def test_the_finish_reason(self, ends: list[str], reason: str) -> None:
        deltas = [(page, delta("x", finish=end)) for page, end in enumerate(ends)]
        got = await completed(*deltas, pages=len(ends))
        assert got["choices"][0]["finish_reason"] == reason
        reasons = [chunk["choices"][0]["finish_reason"] for chunk in await chunks(*deltas, pages=len(ends))]
        assert reasons == [None] * (len(reasons) - 1) + [reason]

    async def test_each_choice_has_its_own_finish_reason(self) -> None:
        deltas = [delta("a", choice=0, finish="stop"), delta("b", choice=1, finish="length")]
        got = await completed(*deltas, n=2, temperature=1.0)
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
        got = await completed(*deltas, pages=2, n=2, temperature=1.0)
        assert got["usage"] == {
            "prompt_tokens": 101,
            "completion_tokens": 1111,
            "total_tokens": 1212,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 201},
        }

    async def test_usage_counts_every_choice(self) -> None:
        got = await completed(*HELLO, n=3)
        assert [choice["message"]["content"] for choice in got["choices"]] == ["Hello"] * 3
        assert [choice["index"] for choice in got["choices"]] == [0, 1, 2]
        assert (got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]) == (10, 9)

    async def test_an_empty_answer(self) -> None:
        got = await completed(delta("", finish="stop"))
        assert got["choices"][0]["message"]["content"] == ""


class TestChunks:
    async def test_chunks_as_openai_sends_them(self) -> None:
        got = await chunks(*HELLO)
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
        got = await chunks(*HELLO, stream_options={"include_usage": True})
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
        got = await chunks(*HELLO, stream_options=options)
        assert all("usage" not in chunk for chunk in got)
        assert all(len(chunk["choices"]) == 1 for chunk in got)

    async def test_the_role_of_every_choice_comes_first(self) -> None:
        deltas = [delta("a", choice=choice, finish="stop") for choice in (1, 0, 2)]
        got = [chunk["choices"][0] for chunk in await chunks(*deltas, n=3, temperature=1.0)]
        assert [(choice["index"], choice["delta"]) for choice in got[:3]] == [(index, FIRST) for index in range(3)]
        assert [(choice["index"], choice["delta"]) for choice in got[3:]] == [
            *((index, {"content": "a"}) for index in (1, 0, 2)),
            *((index, {}) for index in range(3)),
        ]

    async def test_an_early_error_is_raised_before_the_first_chunk(self) -> None:
        """Until then, an error can be answered with its own status."""

        async def broken() -> AsyncGenerator[Event]:
            raise ValueError("early")
            yield Piece(0, delta())

        with pytest.raises(ValueError, match="early"):
            await anext(answer(broken(), stream=True).chunks())

    async def test_a_page_that_ends_does_not_end_the_answer(self) -> None:
        pieces = (0, delta("a", finish="stop")), (1, delta("b")), (1, delta(finish="stop"))
        got = await chunks(*pieces, pages=2)
        assert [sorted(chunk["choices"][0]["delta"]) for chunk in got] == [
            ["content", "role"],
            ["content"],
            ["ocr"],
            ["content"],
            ["ocr"],
            [],
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in got] == [*[None] * 5, "stop"]

    async def test_pieces_without_text_make_no_chunk(self) -> None:
        got = await chunks(delta(""), delta("a"), delta(""), delta("", finish="length"))
        assert [chunk["choices"][0]["delta"] for chunk in got] == [FIRST, {"content": "a"}, {}]

    async def test_usage_counts_every_choice_in_a_stream(self) -> None:
        got = await chunks(*HELLO, n=2, stream_options={"include_usage": True})
        assert [chunk["choices"][0]["finish_reason"] for chunk in got[-3:-1]] == ["stop", "stop"]
        assert got[-1]["usage"]["completion_tokens"] == 6

    async def test_the_usage_so_far(self) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        got = await chunks(*HELLO, stream_options=options)
        assert [chunk["usage"]["completion_tokens"] for chunk in got] == [0, 1, 2, 3, 3]
        assert [chunk["usage"]["prompt_tokens"] for chunk in got] == [0, 10, 10, 10, 10]
        assert all(chunk["usage"]["prompt_tokens_details"]["image_tokens"] == 100 for chunk in got[-2:])

    async def test_closing_the_stream_closes_the_session(self) -> None:
        closed = []

        async def source() -> AsyncGenerator[Event]:
            try:
                while True:
                    yield Piece(0, delta("x"))
            finally:
                closed.append(True)

        stream = answer(source(), stream=True).chunks()
        await anext(stream)
        await stream.aclose()
        assert closed


class TestTokenIds:
    PIECES = (
        delta("Hel", token_ids=(1,), prompt_token_ids=(5, 6)),
        delta("lo", token_ids=(2, 3), finish="stop"),
    )

    async def test_as_a_whole(self) -> None:
        got = await completed(*self.PIECES, n=2, return_token_ids=True)
        assert got["prompt_token_ids"] == [5, 6]
        assert [choice["token_ids"] for choice in got["choices"]] == [[1, 2, 3]] * 2

    async def test_in_a_stream(self) -> None:
        got = await chunks(*self.PIECES, return_token_ids=True)
        assert [chunk.get("prompt_token_ids") for chunk in got] == [[5, 6], None, None, None]
        assert [chunk["choices"][0].get("token_ids") for chunk in got] == [None, [1], [2, 3], None]

    async def test_only_if_asked_for(self) -> None:
        got = await completed(*HELLO)
        assert "prompt_token_ids" not in got
        assert "token_ids" not in got["choices"][0]


class TestLogprobs:
    STEP = LogprobStep(
        ScoredToken("é", -0.5), [ScoredToken("é", -0.5), ScoredToken("b", -1.0), ScoredToken("c", -math.inf)]
    )

    async def test_conversion(self) -> None:
        got = await completed(delta("é", logprobs=[self.STEP], finish="stop"), logprobs=True, top_logprobs=3)
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

    async def test_tokens_as_ids(self) -> None:
        step = LogprobStep(ScoredToken("é", -0.5, 7), [ScoredToken("é", -0.5, 7)])
        got = await completed(
            delta("é", logprobs=[step], finish="stop"),
            logprobs=True,
            top_logprobs=1,
            return_tokens_as_token_ids=True,
        )
        (token,) = got["choices"][0]["logprobs"]["content"]
        assert (token["token"], token["bytes"]) == ("token_id:7", list("é".encode()))
        assert token["top_logprobs"][0]["token"] == "token_id:7"

    async def test_an_impossible_token_that_was_chosen(self) -> None:
        step = LogprobStep(ScoredToken("a", -math.inf), [])
        got = await completed(delta("a", logprobs=[step], finish="stop"), logprobs=True)
        (token,) = got["choices"][0]["logprobs"]["content"]
        assert token["logprob"] == -9999.0

    @pytest.mark.parametrize(("asked", "given"), [({}, 0), ({"top_logprobs": 0}, 0), ({"top_logprobs": 2}, 2)])
    async def test_as_many_alternatives_as_asked_for(self, asked: dict[str, int], given: int) -> None:
        piece = delta("é", logprobs=[self.STEP], finish="stop")
        for chunk in (
            await completed(piece, logprobs=True, **asked),
            (await chunks(piece, logprobs=True, **asked))[1],
        ):
            assert len(chunk["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == given

    async def test_all_steps_of_all_pages(self) -> None:
        steps = [(page, delta("é", logprobs=[self.STEP] * (page + 1), finish="stop")) for page in range(3)]
        got = await completed(*steps, pages=3, logprobs=True)
        assert len(got["choices"][0]["logprobs"]["content"]) == 6

    async def test_a_step_without_text_is_not_lost(self) -> None:
        got = await chunks(delta("", logprobs=[self.STEP]), delta("é", finish="stop"), logprobs=True)
        assert [chunk["choices"][0]["logprobs"] is not None for chunk in got] == [False, True, False, False]
        assert got[1]["choices"][0]["delta"] == {"content": ""}


class TestPages:
    """Several pages, and the reports on them."""

    ENDS = (
        (0, delta("a", finish="stop")),
        (1, delta("b")),
        (1, delta("c", finish="stop")),
        (2, delta("", finish="stop")),
    )

    async def test_the_separator_stands_between_them(self) -> None:
        got = await completed(*self.ENDS, pages=3)
        assert got["choices"][0]["message"]["content"] == "a|bc|"

    async def test_the_separator_comes_with_the_page_after_it(self) -> None:
        found = [chunk["choices"][0]["delta"] for chunk in await chunks(*self.ENDS, pages=3)]
        assert [each["content"] for each in found if "content" in each] == ["", "a", "|b", "c", "|"]

    async def test_each_choice_has_its_own_separators(self) -> None:
        deltas = [
            (0, delta("a", choice=0, finish="stop")),
            (0, delta("A", choice=1, finish="stop")),
            (1, delta("B", choice=1)),
            (1, delta("b", choice=0, finish="stop")),
            (1, delta("B", choice=1, finish="stop")),
        ]
        got = await completed(*deltas, pages=2, n=2, temperature=1.0)
        assert [choice["message"]["content"] for choice in got["choices"]] == ["a|b", "A|BB"]

    async def test_a_single_raw_picture_has_no_report(self) -> None:
        assert "ocr" not in (await completed(*HELLO))["choices"][0]["message"]
        assert all("ocr" not in chunk["choices"][0]["delta"] for chunk in await chunks(*HELLO))

    @pytest.mark.parametrize(
        "options",
        [{"pages": 2}, {"is_document": True}, {"ocr": {"output": "markdown"}}, {"ocr": {"output": "blocks"}}],
    )
    async def test_every_other_answer_has_reports(self, options: dict[str, Any]) -> None:
        pieces = [(page, delta("x", finish="stop")) for page in range(options.get("pages", 1))]
        got = await completed(*pieces, **options)
        assert len(got["choices"][0]["message"]["ocr"]["pages"]) == len(pieces)

    async def test_reports(self) -> None:
        pieces = (0, delta("a", finish="stop")), (1, delta("b", finish="length"))
        got = await completed(*pieces, pages=2)
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
        deltas = [chunk["choices"][0]["delta"] for chunk in await chunks(*pieces, pages=2)]
        assert [list(each) for each in deltas] == [["role", "content"], ["content"], ["ocr"], ["content"], ["ocr"], []]
        assert [each["ocr"]["pages"][0] for each in deltas if "ocr" in each] == reports

    async def test_a_page_that_failed_keeps_its_place(self) -> None:
        failed = PageReading(1, 1, 4, error=InvalidRequest("It is torn.", code="torn"))
        first, third = readings((0, delta("a", finish="stop")), (2, delta("c", finish="stop")))[::2]
        got = await whole(answer([first, failed, third], pages=3))
        (choice,) = got["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("a||c", "length")
        report = choice["message"]["ocr"]["pages"][1]
        assert (report["page"], report["finish_reason"]) == (5, "error")
        assert report["error"] == {"message": "It is torn.", "code": "torn"}

    async def test_an_engine_that_returns_nothing_has_failed(self) -> None:
        with pytest.raises(EngineFailure):
            await answer([PageReading(0, 0, 0)]).completion()

    async def test_the_picture_of_a_page_comes_before_its_text(self) -> None:
        (reading,) = readings(*HELLO)

        async def opened() -> AsyncGenerator[Event]:
            yield Opened(reading, b"jpeg")
            async for event in events_of([reading]):
                yield event

        deltas = [
            each["choices"][0]["delta"] for each in await streamed(answer(opened(), show_pages=True, stream=True))
        ]
        assert [list(each) for each in deltas] == [
            ["role", "content"],
            ["ocr_page"],
            ["content"],
            ["content"],
            ["ocr"],
            [],
        ]
        page = deltas[1]["ocr_page"]
        assert page.pop("image") == "data:image/jpeg;base64,anBlZw=="
        assert page == {"index": 0, "source": 0, "page": 1, "pages": 1, "width": 640, "height": 480}


SAID = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 499]]<|/det|>\n# Hi\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>"
)


def located(index: int = 0) -> PageReading:
    reading = PageReading(index, 0, 6, 200, 100, deltas=[delta(SAID[:40]), delta(SAID[40:], finish="stop")])
    reading.artifacts = PageArtifacts(blocks(SAID, 200, 100))
    return reading


class TestFormats:
    async def test_raw_is_verbatim(self) -> None:
        got = await whole(answer([located()], ocr={"output": "raw"}))
        assert got["choices"][0]["message"]["content"] == SAID

    async def test_markdown_has_no_markers_and_links_figures(self) -> None:
        got = await whole(answer([located()], number=6, ocr={"output": "markdown"}))
        assert got["choices"][0]["message"]["content"] == "# Hi\n\n![](images/page-7-figure-1.jpeg)"

    async def test_markdown_in_a_stream_is_the_same(self) -> None:
        got = await streamed(answer([located()], number=6, stream=True, ocr={"output": "markdown"}))
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in got)
        assert text == "# Hi\n\n![](images/page-7-figure-1.jpeg)"

    async def test_blocks_are_in_the_report(self) -> None:
        got = await whole(answer([located()], ocr={"output": "blocks"}))
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
        form = {"type": "json_schema", "json_schema": {"name": "blocks", "schema": schema}}
        made = answer([located(), located(1)], pages=2, stream=stream, ocr={"output": "blocks"}, response_format=form)
        if stream:
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in await streamed(made))
        else:
            text = (await whole(made))["choices"][0]["message"]["content"]
        page = {"page": 7, "blocks": [{"label": "title"}, {"label": "image"}]}
        assert json.loads(text) == {"pages": [page, page]}

    async def test_blocks_as_any_json(self) -> None:
        got = await whole(answer([located()], ocr={"output": "blocks"}, response_format={"type": "json_object"}))
        message = got["choices"][0]["message"]
        assert json.loads(message["content"]) == message["ocr"]


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
    def test_any_pieces(
        self, pages: int, texts: list[list[str]], ends: list[str], choices: int, greedy: bool, with_logprobs: bool
    ) -> None:
        deltas: list[tuple[int, PageDelta]] = []
        for page in range(pages):
            for choice in range(1 if greedy else choices):
                pieces, end = texts[page * 3 + choice], ends[page * 3 + choice]
                for place, words in enumerate(pieces):
                    steps = [LogprobStep(ScoredToken(words, -float(place)), [])] if with_logprobs else None
                    finish = end if place == len(pieces) - 1 else None
                    deltas.append((page, delta(words, choice=choice, finish=finish, logprobs=steps)))
        options = {"pages": pages, "n": choices, "temperature": 0.0 if greedy else 1.0, "logprobs": with_logprobs}
        got = asyncio.run(completed(*deltas, **options))
        *stream, last = asyncio.run(chunks(*deltas, stream_options={"include_usage": True}, **options))
        assert last["usage"] == got["usage"]
        for choice in got["choices"]:
            own = [each for chunk in stream for each in chunk["choices"] if each["index"] == choice["index"]]
            assert "".join(each["delta"].get("content", "") for each in own) == choice["message"]["content"]
            assert own[0]["delta"]["role"] == choice["message"]["role"]
            assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
            tokens = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
            assert tokens == (choice["logprobs"]["content"] if choice["logprobs"] else [])
            reports = [report for each in own if "ocr" in each["delta"] for report in each["delta"]["ocr"]["pages"]]
            assert reports == choice["message"].get("ocr", {"pages": []})["pages"]
