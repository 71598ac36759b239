"""The web page's files, who is sent to it, and what its answers allow a browser."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from config import Settings
from ocr_server.app import create_app
from ocr_server.dialects.service.web_page import FILES
from ocr_server.transport.negotiation import prefers_html
from tests.ocr_server.conftest import FakeEngine, client_of, error_of

BROWSERS = {
    "Chromium": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Firefox": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "text browsers": "text/html, text/*;q=0.5, */*;q=0.1",
}
OTHERS = {
    "curl": "*/*",
    "the SDK": "application/json",
    "nobody": "",
    "one that takes both": "text/html, application/json",
    "one that likes JSON better": "text/html;q=0.5, application/json",
    "one that wants no HTML": "text/html;q=0, */*",
    "nonsense": ";;q=, text/html;q=much",
}


class TestFrontDoor:
    @pytest.mark.parametrize("accept", BROWSERS.values(), ids=BROWSERS.keys())
    async def test_a_browser_is_sent_to_the_page(self, client: httpx.AsyncClient, accept: str) -> None:
        answer = await client.get("/", headers={"accept": accept})
        assert answer.status_code == 307
        assert str(answer.url.join(answer.headers["location"])) == "http://server/ui/"
        assert answer.headers["vary"].lower() == "accept"

    @pytest.mark.parametrize("accept", OTHERS.values(), ids=OTHERS.keys())
    async def test_others_get_json(self, client: httpx.AsyncClient, accept: str) -> None:
        assert not prefers_html(accept)
        answer = await client.get("/", headers={"accept": accept})
        assert answer.json()["model"] == "deepseek-ocr"
        assert answer.headers["vary"].lower() == "accept"

    async def test_the_path_without_a_slash_leads_there_too(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/ui", follow_redirects=True)
        assert answer.url.path == "/ui/"
        assert answer.headers["content-type"].startswith("text/html")


class TestFiles:
    @pytest.mark.parametrize(
        ("path", "kind"),
        [
            ("/ui/", "text/html"),
            ("/ui/app.js", "javascript"),
            ("/ui/style.css", "text/css"),
            ("/ui/icon.svg", "image/svg+xml"),
        ],
    )
    async def test_each_is_served_as_what_it_is(self, client: httpx.AsyncClient, path: str, kind: str) -> None:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert answer.headers["cache-control"] == "no-cache"
        again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304

    async def test_all_that_the_page_names_is_there(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/ui/")).text
        named = re.findall(r'(?:src|href)="([^"#.][^"#]*\.(?:js|css|svg))"', page)
        named += [
            name
            for file in FILES.glob("*.js")
            for name in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8"))
        ]
        assert len(named) > 20
        for name in set(named):
            assert (await client.get(f"/ui/{name}")).status_code == 200, name

    async def test_nothing_outside_can_be_had(self, client: httpx.AsyncClient) -> None:
        for path in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/..%2fapp.py", "/ui/nothing.js"):
            error_of(await client.get(path), 404)

    def test_nothing_comes_from_outside(self) -> None:
        own = [file for file in FILES.glob("*.*") if file.suffix in (".html", ".css", ".js")]
        assert len(own) > 15
        for file in own:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
            assert len(text.splitlines()) <= 300, file.name

    def test_the_whole_page_is_small(self) -> None:
        assert sum(file.stat().st_size for file in FILES.rglob("*") if file.is_file()) < 500_000


class TestPolicy:
    @pytest.mark.parametrize("path", ["/ui/", "/ui/app.js"])
    async def test_only_what_is_ours_may_run(self, client: httpx.AsyncClient, path: str) -> None:
        policy = dict(
            part.split(" ", 1) for part in (await client.get(path)).headers["content-security-policy"].split("; ")
        )
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data: blob:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }

    def test_the_page_itself_keeps_to_it(self) -> None:
        page = (FILES / "index.html").read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script>", page)


class TestKeys:
    @pytest.fixture
    async def locked(self, settings: Settings) -> Any:
        app = create_app(Settings(**{**settings.model_dump(), "API_KEYS": "sk-1"}), FakeEngine())
        async with client_of(app) as client:
            yield client
        await app.state.context.intake.close()

    @pytest.mark.parametrize("path", ["/ui/", "/ui/app.js"])
    async def test_the_page_needs_none(self, locked: httpx.AsyncClient, path: str) -> None:
        assert (await locked.get(path)).status_code == 200

    async def test_a_browser_gets_there_without_one(self, locked: httpx.AsyncClient) -> None:
        answer = await locked.get("/", headers={"accept": BROWSERS["Chromium"]}, follow_redirects=True)
        assert answer.status_code == 200
        assert answer.url.path == "/ui/"

    @pytest.mark.parametrize("path", ["/", "/uix", "/v1/models", "/docs", "//ui/", "/UI/"])
    async def test_all_else_still_does(self, locked: httpx.AsyncClient, path: str) -> None:
        error_of(await locked.get(path), 401)

    @pytest.mark.parametrize("path", ["/v1/models", "/docs"])
    async def test_asking_for_html_opens_nothing_else(self, locked: httpx.AsyncClient, path: str) -> None:
        error_of(await locked.get(path, headers={"accept": "text/html"}), 401)

    @pytest.mark.parametrize("path", ["/ui/../v1/models", "/ui/%2e%2e/v1/models", "/ui//v1/models"])
    async def test_no_way_leads_past_the_page(self, locked: httpx.AsyncClient, path: str) -> None:
        assert (await locked.get(path)).status_code in (401, 404)

    async def test_only_reading_is_free(self, locked: httpx.AsyncClient) -> None:
        error_of(await locked.post("/ui/"), 401)
