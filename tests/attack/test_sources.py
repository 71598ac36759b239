"""Attacks by what a request refers to: downloads, pictures and documents that are small as files, and names."""

from __future__ import annotations

import base64
import threading
from typing import Any

import httpx
import pytest

from tests.attack.fake_server import SILENT
from tests.attack.harness import (
    KEY,
    MEGA,
    OTHER_KEY,
    GoodClient,
    Server,
    bearer,
    error_code,
    good_clients,
    png_bytes,
    together,
)
from tests.ocr_server.conftest import CHAT, chat, message, picture
from tests.ocr_server.intake import pdfs

BUDGET = 600 * MEGA
"""The memory budget of the server."""
LARGE_PNG = png_bytes(5_000, 5_000)
"""75 MB of pixels in 73 kB."""


def ask(server: Server, *urls: str, path: str = CHAT, key: str = OTHER_KEY, **more: Any) -> httpx.Response:
    body: dict[str, Any] = {"document": {"document_url": urls[0]}, **more}
    if path == CHAT:
        body = chat(message(*map(picture, urls), "Free OCR."), **more)
    return httpx.post(server.url + path, json=body, headers=bearer(key), timeout=240)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


class TestDownloads:
    def test_compressed_downloads(self, tight: Server, files: str) -> None:
        """24 files of 49 MB, with fewer bytes on the wire than a small picture."""
        with good_clients(tight, KEY), tight.watched() as cost:
            answers = together(24, lambda _: ask(tight, f"{files}/bomb"))
        assert {answer.status_code for answer in answers} <= {400, 429}
        assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
        cost.check(most=BUDGET)

    def test_many_urls_in_one_request(self, tight: Server, files: str) -> None:
        with good_clients(tight, KEY), tight.watched() as cost:
            assert ask(tight, *[f"{files}/bomb"] * 64).status_code in (400, 429)
        cost.check(most=BUDGET)

    @pytest.mark.parametrize("name", ["endless", "slow"])
    def test_downloads_that_do_not_end(self, tight: Server, files: str, name: str) -> None:
        with good_clients(tight, KEY), tight.watched() as cost:
            answers = together(8, lambda _: ask(tight, f"{files}/{name}"))
        assert {answer.status_code for answer in answers} <= {400, 413, 429}
        cost.check(most=BUDGET)


class TestNames:
    def test_names_that_are_looked_up_for_ever(self, tight: Server) -> None:
        """Others' pictures are read, and others' URLs are downloaded."""
        answers: list[list[httpx.Response]] = []

        def attack() -> None:
            urls = [[f"http://h{number}-{url}{SILENT}/" for url in range(64)] for number in range(4)]
            answers.append(together(4, lambda number: ask(tight, *urls[number])))

        with good_clients(tight, KEY), tight.watched() as cost:
            attacker = threading.Thread(target=attack)
            attacker.start()
            assert error_code(ask(tight, f"http://localhost:{tight.port}/livez", key=KEY)) == "invalid_image_format"
            attacker.join(240)
        assert {answer.status_code for answer in answers[0]} <= {400, 429}
        cost.check(most=20 * MEGA)


class TestPixels:
    def test_large_pictures(self, tight: Server) -> None:
        """Four pictures hold 300 MB if they are decoded at once."""
        with good_clients(tight, KEY), tight.watched() as cost:
            answers = together(4, lambda _: ask(tight, data_uri(LARGE_PNG), ocr={"mode": "tiny"}))
        assert {answer.status_code for answer in answers} <= {200, 429}
        cost.check(most=BUDGET)
        assert cost.held_by_decoders < BUDGET

    def test_large_pictures_in_one_request(self, tight: Server) -> None:
        with good_clients(tight, KEY), tight.watched() as cost:
            assert ask(tight, *[data_uri(LARGE_PNG)] * 3, ocr={"mode": "tiny"}).status_code == 200
        cost.check(most=BUDGET)

    def test_figures_and_overlays(self, tight: Server) -> None:
        """Pages of 15 megapixels, of a PDF of a few hundred bytes."""
        document = data_uri(pdfs.pdf(*[pdfs.filled(1, 0, 0)] * 3), "application/pdf")
        with good_clients(tight, KEY), tight.watched() as cost:
            answer = ask(tight, document, path="/v1/ocr", output="overlay", dpi=400, mode="tiny")
        assert answer.status_code == 200, answer.text
        cost.check(most=BUDGET)

    def test_bombs(self, tight: Server) -> None:
        """More pixels than are allowed, which is found out before they are decoded."""
        client = GoodClient(tight, KEY)
        with tight.watched() as cost:
            for side in (12_000, 30_000):
                assert ask(tight, data_uri(_claims(side))).status_code == 413
        client.ask()
        assert client.answered == 1
        cost.check(most=10 * MEGA)


def _claims(side: int) -> bytes:
    from tests.ocr_server.intake.bad_files import png_of

    return png_of(side, side, b"")
