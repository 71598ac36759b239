"""Attacks by bodies that are small to send and dear to parse."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import struct
from contextlib import closing

import httpx
import pytest

from tests.attack.harness import (
    KEY,
    MEGA,
    OTHER_KEY,
    Connection,
    Server,
    batch,
    batch_line,
    batch_lines,
    bearer,
    good_clients,
    post,
    upload,
)
from tests.ocr_server.conftest import CHAT, WHITE, chat, message, picture, png

OCR = "/v1/ocr"
BODY = 10 * MEGA


def _filled(start: bytes, unit: bytes, end: bytes, size: int = BODY) -> bytes:
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


JSON = {
    "messages that are no objects": _filled(b'{"model":"m","messages":[', b"0,", b"0]}"),
    "messages without a role": _filled(b'{"model":"m","messages":[', b"{},", b"{}]}"),
    "parts": _filled(b'{"model":"m","messages":[{"role":"user","content":[', b'{"type":"text"},', b"1]}]}"),
    "stops": _filled(b'{"model":"m","messages":[],"stop":[', b'"",', b'""]}'),
    "unknown fields": b'{"model":"m",' + b",".join(b'"%d":0' % n for n in range(BODY // 11)) + b"}",
    "biases": b'{"model":"m","messages":[],"logit_bias":{'
    + b",".join(b'"%d":0' % n for n in range(BODY // 11))
    + b"}}",
    "the same field again and again": _filled(b"{", b'"model":"m",', b'"model":"m"}'),
    "lists in lists": b"[" * (BODY // 2) + b"]" * (BODY // 2),
    "objects in objects": b'{"a":' * (BODY // 6) + b"1" + b"}" * (BODY // 6),
    "escapes": _filled(b'{"model":"', b"\\u0041", b'"}'),
    "surrogates": _filled(b'{"model":"', b"\\ud83d\\ude00", b'"}'),
    "Chinese": _filled(b'{"model":"', "字".encode(), b'"}'),
    "a long number": _filled(b'{"model":', b"1", b"}"),
    "a long fraction": _filled(b'{"model":0.', b"1", b"}"),
    "blanks": _filled(b'{"model":', b" ", b'"m"}'),
    "a long text": _filled(b'{"model":"m","messages":[{"role":"user","content":"', b"x", b'"}]}'),
    "a long URL": _filled(
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://h/',
        b"x",
        b'"}}]}]}',
    ),
    "a long name of a parameter": _filled(b'{"', b"x", b'":0}'),
    "a schema": _filled(
        b'{"model":"m","messages":[],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{',
        b'"a":{"type":"string"},',
        b'"b":{}}}}}',
    ),
    "not JSON": b"\xff" * BODY,
    "pages": _filled(b'{"model":"m","document":{"document_url":"x"},"pages":"', b"1,", b'1"}'),
}


@pytest.mark.parametrize(
    ("kind", "path"), [*((kind, CHAT) for kind in JSON), *((kind, OCR) for kind in ("unknown fields", "pages"))]
)
def test_json(keyed: Server, kind: str, path: str) -> None:
    """It is refused, for a price that is in proportion to its size, and others are answered in the meantime."""
    body = JSON[kind]
    with good_clients(keyed, KEY), keyed.watched() as cost:
        response = httpx.post(keyed.url + path, content=body, headers=bearer(OTHER_KEY), timeout=120)
    assert 400 <= response.status_code < 500, response.text
    assert len(response.content) < 10_000
    cost.check(most=100 * MEGA, sent=len(body), ratio=6)


class TestForms:
    @pytest.mark.parametrize("charset", ["punycode", "undefined", "x" * 500])
    @pytest.mark.parametrize("path", ["/v1/files", OCR])
    def test_a_codec_of_the_client_s_choice(self, keyed: Server, charset: str, path: str) -> None:
        """For the whole form, and for one of its parts."""
        part = f'--b\r\ncontent-disposition: form-data; name="purpose"\r\ncontent-type: text/plain; charset={charset}'
        body = part.encode() + b"\r\n\r\n" + b"x-" * (MEGA // 2) + b"\r\n--b--\r\n"
        with good_clients(keyed, KEY), keyed.watched() as cost:
            for kind in (f"multipart/form-data; boundary=b; charset={charset}", "multipart/form-data; boundary=b"):
                headers = {"content-type": kind, **bearer(OTHER_KEY)}
                response = httpx.post(keyed.url + path, content=body, headers=headers, timeout=120)
                assert 400 <= response.status_code < 500, response.text
        cost.check(most=20 * MEGA)

    @pytest.mark.parametrize(
        "body",
        [
            b"".join(b'--b\r\ncontent-disposition: form-data; name="%d"\r\n\r\n\r\n' % n for n in range(50_000)),
            b"--b\r\n" + b"a: b\r\n" * 500_000,
            b"--b\r\ncontent-disposition: form-data; " + b"a=b;" * 500_000,
            b"--b\r\ncontent-disposition: form-data; name=" + b"n" * 3 * MEGA,
            b"-" * 3 * MEGA,
            b"--b\r\n" * 500_000,
            b"\r\n--b" * 500_000,
        ],
        ids=["parts", "header fields", "parameters", "a long name", "hyphens", "boundaries", "boundaries of parts"],
    )
    @pytest.mark.parametrize("path", ["/v1/files", OCR])
    def test_parts(self, keyed: Server, body: bytes, path: str) -> None:
        headers = {"content-type": "multipart/form-data; boundary=b", **bearer(OTHER_KEY)}
        with good_clients(keyed, KEY), keyed.watched() as cost:
            response = httpx.post(keyed.url + path, content=body, headers=headers, timeout=120)
        assert 400 <= response.status_code < 500, response.text
        cost.check(most=40 * MEGA)

    def test_a_large_upload_takes_little_memory(self, keyed: Server) -> None:
        with good_clients(keyed, KEY), keyed.watched() as cost:
            assert upload(keyed, b'{"a":1}\n' * (60 * MEGA // 8), key=OTHER_KEY).status_code == 200
        cost.check(most=20 * MEGA)


class TestPictures:
    """Files in the body of a request."""

    @pytest.mark.parametrize(
        ("url", "status"),
        [
            ("data:image/png," + "%41" * (BODY // 3), 400),
            ("data:image/png;base64," + "%41" * (BODY // 3), 400),
            ("data:image/png;base64," + "A\n" * (BODY // 3), 400),
            ("data:" + ";a=b" * (BODY // 4) + ",", 400),
            ("data:image/png;base64," + "A" * 8 * BODY, 413),
            (" " * BODY + WHITE, 200),
        ],
        ids=["quoted", "quoted base64", "broken lines", "parameters", "large", "blanks"],
    )
    def test_data_uris(self, keyed: Server, url: str, status: int) -> None:
        body = json.dumps(chat(message(picture(url)), ocr={"mode": "tiny"})).encode()
        with good_clients(keyed, KEY), keyed.watched() as cost:
            response = httpx.post(
                f"{keyed.url}/v1/chat/completions", content=body, headers=bearer(OTHER_KEY), timeout=120
            )
        assert response.status_code in {status, 400}, response.text
        cost.check(most=400 * MEGA, sent=len(body), ratio=6)

    @pytest.mark.parametrize("kind", ["directories", "a loop", "entries"])
    def test_directories_of_a_tiff(self, keyed: Server, kind: str) -> None:
        url = "data:image/tiff;base64," + base64.b64encode(_tiff(kind)).decode()
        with good_clients(keyed, KEY), keyed.watched() as cost:
            response = httpx.post(
                f"{keyed.url}/v1/chat/completions", json=chat(message(picture(url))), headers=bearer(OTHER_KEY)
            )
        assert response.status_code == 400, response.text
        cost.check(most=20 * MEGA)

    def test_fragments(self, keyed: Server) -> None:
        """A body that arrives in the smallest pieces costs no more memory than in one."""
        body = json.dumps(chat(message(picture(png()), "x" * 200_000))).encode()
        with good_clients(keyed, KEY), keyed.watched() as cost, Connection(keyed) as attacker:
            request = post(body, key=OTHER_KEY)
            for at in range(0, len(request), 100):
                attacker.send(request[at : at + 100])
            assert attacker.status() == 400
        cost.check(most=10 * MEGA)


def _tiff(kind: str) -> bytes:
    """Return a TIFF of 0.4 MB whose directories take long to walk."""
    file = io.BytesIO(b"II*\0" + struct.pack("<I", 8))
    file.seek(8)
    if kind == "entries":
        file.write(struct.pack("<H", 33_000) + b"".join(struct.pack("<HHII", n, 3, 1, 1) for n in range(33_000)))
        file.write(struct.pack("<I", 8))
        return file.getvalue()
    count = 1 if kind == "a loop" else 22_000
    for number in range(count):
        size = 2 + 12 + 4
        following = 8 if kind == "a loop" else 8 + (number + 1) * size
        file.write(struct.pack("<HHHIII", 1, 256, 3, 1, 1, following if number < count - 1 or kind == "a loop" else 0))
    return file.getvalue()


class TestBatches:
    def test_blank_lines(self, keyed: Server) -> None:
        data = b"\n" * 60 * MEGA + batch_line("a", chat())
        with good_clients(keyed, KEY), keyed.watched() as cost:
            assert batch(keyed, data, key=OTHER_KEY)["status"] == "failed"
        cost.check(most=30 * MEGA)

    def test_a_line_that_is_dear_to_parse(self, keyed: Server) -> None:
        """The request or the file is refused; the server does not die of it, now or after a restart."""
        lines = [
            b'{"custom_id":"x","method":"POST","url":"/v1/chat/completions","body":%b}\n' % JSON[kind] for kind in JSON
        ]
        for line in lines[:3]:
            with good_clients(keyed, KEY), keyed.watched() as cost:
                ended = batch(keyed, line, key=OTHER_KEY)
            assert ended["status"] in ("failed", "completed")
            assert ended["request_counts"]["completed"] == 0
            cost.check(most=100 * MEGA, sent=len(line), ratio=6)

    def test_wrong_lines(self, keyed: Server) -> None:
        with good_clients(keyed, KEY), keyed.watched() as cost:
            ended = batch(keyed, b"{}\n" * 49_000, key=OTHER_KEY)
        assert ended["status"] == "failed"
        assert len(json.dumps(ended)) < 100_000
        cost.check(most=20 * MEGA)

    def test_many_failing_requests(self, keyed: Server) -> None:
        lines = b"".join(batch_line(str(number), {"model": "no"}) for number in range(1000))
        with good_clients(keyed, KEY), keyed.watched() as cost:
            ended = batch(keyed, lines, key=OTHER_KEY)
        assert ended["request_counts"]["failed"] == 1000
        assert len(batch_lines(keyed, ended, key=OTHER_KEY)) == 1000
        cost.check(most=30 * MEGA)

    def test_a_list_of_many_files(self, keyed: Server) -> None:
        """4.5 MB of JSON, which are not made in the event loop."""
        file = upload(keyed, b"{}\n", key=OTHER_KEY, name="n" * 255).json()["id"]
        with closing(sqlite3.connect(keyed.folder / "batches.db", timeout=60)) as database:
            made = database.execute("SELECT * FROM files WHERE id = ?", (file,))
            columns = [column for column, *_ in made.description]
            row = dict(zip(columns, made.fetchone(), strict=True))
            insert = f"INSERT INTO files VALUES ({', '.join(f':{column}' for column in columns)})"
            more = [row | {"id": f"{file}-{number}", "seq": 10_000 + number} for number in range(10_000)]
            database.executemany(insert, more)
            database.commit()
        with good_clients(keyed, KEY), keyed.watched() as cost:
            listed = httpx.get(f"{keyed.url}/v1/files", headers=bearer(OTHER_KEY), timeout=120).json()
        assert len(listed["data"]) == 10_000
        assert listed["has_more"]
        cost.check(most=80 * MEGA, stall=0.15)
