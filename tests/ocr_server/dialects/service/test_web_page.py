"""The web page: who is redirected to it, its files, its content security policy, and access without a key."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from config import Settings
from ocr_server.app import create_app
from ocr_server.dialects.service.web_page import FILES
from ocr_server.runtime import Runtime
from ocr_server.transport.negotiation import prefers_html
from tests.ocr_server.conftest import FakeEngine, client_of, error_of

BROWSERS = {
    "Chromium": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Firefox": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "text browsers": "text/html, text/*;q=0.5, */*;q=0.1",
}
OTHER_CLIENTS = {
    "curl": "*/*",
    "the SDK": "application/json",
    "empty": "",
    "both": "text/html, application/json",
    "JSON preferred": "text/html;q=0.5, application/json",
    "no HTML": "text/html;q=0, */*",
    "malformed": ";;q=, text/html;q=much",
}


class TestRoot:
    @pytest.mark.parametrize("accept", BROWSERS.values(), ids=BROWSERS.keys())
    async def test_a_browser_is_redirected_to_the_page(self, client: httpx.AsyncClient, accept: str) -> None:
        answer = await client.get("/", headers={"accept": accept})
        assert answer.status_code == 307
        assert str(answer.url.join(answer.headers["location"])) == "http://server/ui/"
        assert answer.headers["vary"].lower() == "accept"

    @pytest.mark.parametrize("accept", OTHER_CLIENTS.values(), ids=OTHER_CLIENTS.keys())
    async def test_other_clients_get_json(self, client: httpx.AsyncClient, accept: str) -> None:
        assert not prefers_html(accept)
        answer = await client.get("/", headers={"accept": accept})
        assert answer.json()["model"] == "deepseek-ocr"
        assert answer.headers["vary"].lower() == "accept"

    async def test_the_path_without_a_slash_is_redirected(self, client: httpx.AsyncClient) -> None:
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
    async def test_files_are_served_with_media_type_and_etag(
        self, client: httpx.AsyncClient, path: str, kind: str
    ) -> None:
        answer = await client.get(path)
        assert answer.status_code == 200
        assert kind in answer.headers["content-type"]
        assert answer.headers["cache-control"] == "no-cache"
        again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304

    async def test_every_referenced_file_exists(self, client: httpx.AsyncClient) -> None:
        page = (await client.get("/ui/")).text
        referenced = re.findall(r'(?:src|href)="([^"#.][^"#]*\.(?:js|css|svg))"', page)
        referenced += [
            name
            for file in FILES.glob("*.js")
            for name in re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8"))
        ]
        assert {"app.js", "job.js", "style.css", "icon.svg", "vendor/marked.js"} <= set(referenced)
        for name in set(referenced):
            assert (await client.get(f"/ui/{name}")).status_code == 200, name

    async def test_files_outside_the_folder_are_not_served(self, client: httpx.AsyncClient) -> None:
        for path in ("/ui/../app.py", "/ui/%2e%2e/app.py", "/ui/..%2fapp.py", "/ui/nothing.js"):
            error_of(await client.get(path), 404)

    def test_the_files_contain_no_external_url(self) -> None:
        own = [file for file in FILES.glob("*.*") if file.suffix in (".html", ".css", ".js")]
        assert {"index.html", "style.css", "content.css", "app.js", "words_en.js", "words_zh.js"} <= {
            file.name for file in own
        }
        for file in own:
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), file.name
            assert len(text.splitlines()) <= 300, file.name

    def test_the_total_size_is_below_500_kb(self) -> None:
        assert sum(file.stat().st_size for file in FILES.rglob("*") if file.is_file()) < 500_000


class TestPolicy:
    @pytest.mark.parametrize("path", ["/ui/", "/ui/app.js"])
    async def test_only_the_servers_own_files_may_run(self, client: httpx.AsyncClient, path: str) -> None:
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

    def test_the_page_has_no_inline_scripts_or_styles(self) -> None:
        page = (FILES / "index.html").read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script>", page)


class TestKeys:
    @pytest.fixture
    async def client_with_key(self, settings: Settings) -> Any:
        app = create_app(Runtime.build(Settings(**{**settings.model_dump(), "API_KEYS": "sk-1"}), FakeEngine()))
        async with client_of(app) as client:
            yield client
        await app.state.runtime.intake.close()

    @pytest.mark.parametrize("path", ["/ui/", "/ui/app.js"])
    async def test_the_page_needs_no_key(self, client_with_key: httpx.AsyncClient, path: str) -> None:
        assert (await client_with_key.get(path)).status_code == 200

    async def test_a_browser_is_redirected_without_a_key(self, client_with_key: httpx.AsyncClient) -> None:
        answer = await client_with_key.get("/", headers={"accept": BROWSERS["Chromium"]}, follow_redirects=True)
        assert answer.status_code == 200
        assert answer.url.path == "/ui/"

    @pytest.mark.parametrize("path", ["/", "/uix", "/v1/models", "/docs", "//ui/", "/UI/"])
    async def test_all_other_paths_need_a_key(self, client_with_key: httpx.AsyncClient, path: str) -> None:
        error_of(await client_with_key.get(path), 401)

    @pytest.mark.parametrize("path", ["/v1/models", "/docs"])
    async def test_accepting_html_gives_access_to_nothing_else(
        self, client_with_key: httpx.AsyncClient, path: str
    ) -> None:
        error_of(await client_with_key.get(path, headers={"accept": "text/html"}), 401)

    @pytest.mark.parametrize(
        ("path", "status"), [("/ui/../v1/models", 401), ("/ui/%2e%2e/v1/models", 404), ("/ui//v1/models", 404)]
    )
    async def test_path_traversal_does_not_bypass_the_key(
        self, client_with_key: httpx.AsyncClient, path: str, status: int
    ) -> None:
        error_of(await client_with_key.get(path), status)

    async def test_only_get_needs_no_key(self, client_with_key: httpx.AsyncClient) -> None:
        error_of(await client_with_key.post("/ui/"), 401)
