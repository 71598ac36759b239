"""No request without a key takes more than 10 MB of memory, or keeps the event loop from others."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

import pytest

from tests.attack.harness import (
    KEY,
    MAX_HELD_WITHOUT_KEY,
    MEGA,
    Connection,
    Server,
    good_clients,
    head,
    post,
)
from tests.attack.test_bodies import JSON
from tests.ocr_server.conftest import CHAT

LARGE = b"x" * 80 * MEGA
FORM = "multipart/form-data; boundary=b"

REQUESTS = {
    "a large body": post(LARGE),
    "a large body for files": post(LARGE, "/v1/files", content_type=FORM),
    "a large body for batches": post(LARGE, "/v1/batches"),
    "a large body for a probe": post(LARGE, "/livez"),
    "a large body with GET": head("/health", method="GET", content_length=len(LARGE)) + LARGE,
    "a large body for the web page": head("/ui/", method="GET", content_length=len(LARGE)) + LARGE,
    "a large body for a path that does not exist": post(LARGE, "/nowhere"),
    "a large chunked body": head(transfer_encoding="chunked") + b"5000000\r\n" + LARGE,
    "a large body that the server should ask for": post(LARGE, expect="100-continue"),
    "a body that is only announced": head(content_length=10**15),
    "a length that is no number": head(content_length="1" * 60_000),
    "a wrong key": post(LARGE, key="wrong"),
    "a long wrong key": head("/v1/models", method="GET", key="k" * 60_000),
    "many small fields": head("/livez", method="GET", **{f"f{n}": n for n in range(95)}),
    "a long URL with signs that are quoted": head("/" + "%41" * 20_000, method="GET"),
    "a long query": head("/livez?" + "a=b&" * 15_000, method="GET"),
    "a long query of a route with parameters": head("/v1/files?" + "limit=1&" * 7_000, method="GET"),
    "an upgrade to a WebSocket": head(
        "/", method="GET", upgrade="websocket", connection="upgrade", sec_websocket_key="A" * 24
    )
    + LARGE,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + LARGE,
    "TLS": b"\x16\x03\x01\x02\x00\x01" + LARGE,
    "zeros": bytes(len(LARGE)),
    "a method that does not exist": head(method="BREW") + LARGE,
    "a preflight": head(method="OPTIONS", origin="http://evil.test", access_control_request_method="POST") + LARGE,
    "a path that is climbing": head("/ui/" + "../" * 15_000, method="GET"),
    "a long accepted type": head("/", method="GET", accept="text/html;q=0.1," * 4_000),
    "cookies": head("/ui/", method="GET", cookie="a=b;" * 15_000),
    "ranges": head("/ui/app.js", method="GET", range="bytes=" + ",".join(f"{n}-{n}" for n in range(9_000))),
    "a forwarded request": head("/livez", method="GET", x_forwarded_for="1.2.3.4," * 7_000),
    "a long request id": head("/livez", method="GET", x_request_id="i" * 60_000),
    "a long host": b"GET /ui HTTP/1.1\r\nhost: " + b"h" * 60_000 + b"\r\n\r\n",
}
REQUESTS |= {f"JSON with {kind}": post(JSON[kind]) for kind in ("parts", "lists in lists", "biases")}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_request_without_a_key(keyed: Server, kind: str) -> None:
    with good_clients(keyed, KEY), keyed.watched() as cost, Connection(keyed) as attacker:
        attacker.send(REQUESTS[kind], seconds=4)
        with suppress(OSError):  # the server has closed the connection
            attacker.socket.shutdown(socket.SHUT_WR)
        assert attacker.status() < 500
    cost.check(most=MAX_HELD_WITHOUT_KEY, sent=attacker.sent)


def test_many_requests_without_a_key(keyed: Server) -> None:
    """Nothing of them is kept: no state for each key, address, path or request id that a client makes up."""
    for number in range(200):  # what the first ones allocate may stay
        _ask(keyed, number)
    with good_clients(keyed, KEY), keyed.watched() as cost:
        for number in range(200, 2000):
            _ask(keyed, number)
    cost.check(most=MAX_HELD_WITHOUT_KEY)


def _ask(server: Server, number: int) -> None:
    body = json.dumps({"model": str(number)}).encode()
    with Connection(server) as attacker:
        attacker.send(
            post(body, f"{CHAT}/{number}?{number}", key=f"wrong-{number}", x_request_id=number, host=f"h{number}.test")
        )
        attacker.status()
