"""Attacks on the queue: one client asks for more than all others together."""

from __future__ import annotations

import base64
from collections.abc import Callable

import httpx
import pytest

from tests.attack.fake_server import Spec
from tests.attack.harness import KEY, KEYED, MEGA, OTHER_KEY, Server, bearer, good_clients, together
from tests.ocr_server.conftest import CHAT, chat, message, picture
from tests.ocr_server.intake import pdfs

WAITING = 200
"""MAX_WAITING_PAGES of the server."""


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start(Spec({**KEYED, "MAX_CONCURRENCY": 2, "MAX_WAITING_PAGES": WAITING}, seconds_a_page=0.2), KEY)


def ask(server: Server, *urls: str) -> httpx.Response:
    body = chat(message(*map(picture, urls)), ocr={"mode": "tiny"})
    return httpx.post(server.url + CHAT, json=body, headers=bearer(OTHER_KEY), timeout=240)


def test_one_client_fills_the_queue(server: Server) -> None:
    """It gets 429 from some point on, and another client is never refused."""
    document = base64.b64encode(pdfs.pdf(*[pdfs.filled(1, 0, 0)] * 60)).decode()
    waiting: list[float] = []

    def attack(number: int) -> httpx.Response:
        if number == 12:
            waiting.append(server.metric("ocr_pages_waiting"))
        return ask(server, f"data:application/pdf;base64,{document}")

    with good_clients(server, KEY, count=2) as good, server.watched() as cost:
        answers = together(13, attack)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)
    assert max(waiting) <= WAITING
    assert good.refused == 0
    cost.check(most=150 * MEGA)
