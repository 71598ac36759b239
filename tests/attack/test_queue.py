"""Attacks on the queue: one client asks for more than all others together."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable

import httpx
import pytest

from tests.attack.fake_server import Spec
from tests.attack.harness import KEY, KEYED, MEGA, OTHER_KEY, Server, bearer, good_clients, together, wait_until
from tests.attack.test_sources import LARGE_PNG, data_uri
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


def test_one_client_fills_the_memory_budget(start: Callable[..., Server]) -> None:
    """With pictures of 73 kB, each of which takes most of it. Another client is never refused."""
    server = start(Spec({**KEYED, "MEMORY_BUDGET_MB": 600}), KEY)
    body = chat(message(picture(data_uri(LARGE_PNG)), "Free OCR."), ocr={"mode": "tiny"})
    done = threading.Event()

    def attack(_: int) -> list[int]:
        statuses = []
        while not done.is_set():
            answer = httpx.post(server.url + CHAT, json=body, headers=bearer(OTHER_KEY), timeout=240)
            statuses.append(answer.status_code)
        return statuses

    with server.watched() as cost:
        attackers = threading.Thread(target=together, args=(6, attack))
        attackers.start()
        wait_until("the budget is in use", lambda: server.metric("ocr_memory_reserved_bytes") > 300 * MEGA)
        try:
            with good_clients(server, KEY) as good:
                wait_until("a good client is answered", lambda: good.answered >= 5)
        finally:
            done.set()
            attackers.join()
    assert good.refused == 0
    cost.check(most=600 * MEGA)
