"""Files and batches over HTTP: batches of every API, lines of answers, lists, and the names of parameters in errors."""

from __future__ import annotations

import json

import pytest

from tests.ocr_server.batches.conftest import Served, request
from tests.ocr_server.conftest import WHITE, error_of, says

LINE_ENDS = "a\u2028b\u2029c\x85d"


async def test_an_answer_is_one_line_whatever_splits_it(served: Served) -> None:
    served.engine.script = says(LINE_ENDS)
    batch = await served.ended(await served.batch([request("a" + LINE_ENDS)]))
    content = (await served.api.files.content(batch.output_file_id)).text
    (line,) = content.splitlines()
    answer = json.loads(line)
    assert answer["custom_id"] == "a" + LINE_ENDS
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == LINE_ENDS
    assert line.isascii()


async def test_a_batch_of_responses(served: Served) -> None:
    item = {"role": "user", "content": [{"type": "input_image", "image_url": WHITE}]}
    line = request("a", {"model": "deepseek-ocr", "input": [item]}, "/v1/responses")
    batch = await served.ended(await served.batch([line], endpoint="/v1/responses"))
    response = (await served.lines(batch.output_file_id))["a"]["response"]["body"]
    assert response["output"][0]["content"][0]["text"] == "Hello"
    assert batch.usage.output_tokens == 1


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
async def test_a_limit_of_zero_and_an_empty_cursor_ask_for_nothing(path: str, served: Served) -> None:
    await served.ended(await served.batch([request("a")]))
    everything = (await served.http.get(path)).json()["data"]
    assert everything
    assert (await served.http.get(path, params={"limit": 0, "after": ""})).json()["data"] == everything


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
@pytest.mark.parametrize("limit", ["-1", "1000000", "x"])
async def test_a_limit_that_is_refused(path: str, limit: str, served: Served) -> None:
    assert error_of(await served.http.get(path, params={"limit": limit}), 400)["param"] == "limit"


async def test_an_input_file_that_does_not_exist(served: Served) -> None:
    body = {"input_file_id": "file-1", "endpoint": "/v1/ocr", "completion_window": "24h"}
    assert error_of(await served.http.post("/v1/batches", json=body), 404)["param"] == "input_file_id"
