"""What pages of other sites can do to a server without keys in a real browser, and that the server's own pages work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Route
from playwright.sync_api import Page as Tab

from config import Settings
from tests.ocr_server.conftest import chat
from tests.ui.browser import TIMEOUT_MS
from tests.ui.conftest import Site, serve_site

REQUESTS = """async ([base, chat, file]) => {
  const form = () => {
    const data = new FormData();
    data.append("purpose", "batch");
    data.append("file", new Blob(['{"custom_id": "1"}']), "a.jsonl");
    return data;
  };
  const body = JSON.stringify(chat);
  const requests = {
    models: ["/v1/models", {}],
    files: ["/v1/files", {}],
    content: ["/v1/files/FILE/content", {}],
    metrics: ["/metrics", {}],
    json: ["/v1/chat/completions", {method: "POST", body, headers: {"content-type": "application/json"}}],
    text: ["/v1/chat/completions", {method: "POST", body}],
    blob: ["/v1/chat/completions", {method: "POST", body: new Blob([body])}],
    opaque: ["/v1/chat/completions", {method: "POST", body, mode: "no-cors"}],
    anonymous: ["/v1/chat/completions", {method: "POST", body, mode: "no-cors", referrerPolicy: "no-referrer"}],
    upload: ["/v1/files", {method: "POST", body: form()}],
    opaqueUpload: ["/v1/files", {method: "POST", body: form(), mode: "no-cors"}],
    cancel: ["/v1/batches/batch_1/cancel", {method: "POST", mode: "no-cors"}],
    delete: ["/v1/files/FILE", {method: "DELETE"}],
  };
  const found = {};
  for (const [name, [path, options]] of Object.entries(requests)) {
    try {
      const response = await fetch(base + path.replace("FILE", file), options);
      found[name] = response.type === "opaque" ? "opaque" : response.status;
    } catch {
      found[name] = "blocked";
    }
  }
  return found;
}"""
"""Sends every kind of request, and returns the status of each as the page sees it."""
EMBEDS = """async (base) => {
  const loaded = (tag, path) => new Promise((resolve) => {
    const element = document.createElement(tag);
    Object.assign(element, {onload: () => resolve(true), onerror: () => resolve(false)});
    element.src = base + path;
    document.body.append(element);
  });
  return [await loaded("script", "/ui/files.js"), await loaded("img", "/ui/icon.svg")];
}"""
SUBMIT = """([base, enctype]) => {
  document.body.innerHTML = `<form method="post" enctype="${enctype}" action="${base}/v1/chat/completions">
    <input name='{"model": "deepseek-ocr", "x": "' value='"}'></form>`;
  document.forms[0].submit();
}"""


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>Elsewhere</title><body></body>")

    def log_message(self, *_: Any) -> None: ...


def port_of(site: Site) -> int:
    port = urlsplit(site.url).port
    assert port is not None
    return port


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another web server, whose pages are empty."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Blank)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def open_site(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server without keys, with batches."""
    folder = tmp_path_factory.mktemp("data")
    yield from serve_site(
        settings, BATCHES=True, DATABASE_URL=f"sqlite:///{folder / 'batches.db'}", STORAGE_URL=str(folder / "files")
    )


@dataclass(frozen=True)
class Victim:
    url: str
    port: int
    file: str
    """Id of the only stored file."""


@pytest.fixture
def victim(open_site: Site) -> Iterator[Victim]:
    """The server with one stored file, which must still be the only one afterwards. No page may have been read."""
    open_site.reset()
    with httpx.Client(base_url=open_site.url) as client:
        upload = {"file": ("mine.jsonl", b'{"custom_id": "mine"}')}
        mine = client.post("/v1/files", files=upload, data={"purpose": "batch"}).json()["id"]
        yield Victim(open_site.url, port_of(open_site), mine)
        assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [mine]
        client.delete(f"/v1/files/{mine}")
    assert open_site.engine.pages == []


Visit = Callable[[str], Tab]


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)

    def open_page(url: str) -> Tab:
        tab = context.new_page()
        tab.goto(url)
        return tab

    yield open_page
    context.close()


def attack(tab: Tab, base: str, file: str = "file-none") -> dict[str, Any]:
    """Return the statuses of all requests that the page sends to the server at `base`."""
    found: dict[str, Any] = tab.evaluate(REQUESTS, [base, chat(), file])
    return found


@pytest.mark.parametrize("page", ["http://127.0.0.1", "http://localhost", "http://evil.example"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "ocr.lan"])
def test_pages_of_other_origins_can_do_nothing(
    victim: Victim, elsewhere: int, visit: Visit, page: str, name: str
) -> None:
    base = f"http://{name}:{victim.port}"
    tab = visit(f"{page}:{elsewhere}/")
    assert set(attack(tab, base, victim.file).values()) <= {"blocked", "opaque"}
    assert tab.evaluate(EMBEDS, base) == [False, False]
    for enctype in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        form = visit(f"{page}:{elsewhere}/")
        with form.expect_navigation():
            form.evaluate(SUBMIT, [base, enctype])
        assert "origin_not_allowed" in form.content()


def test_files_and_sandboxed_frames_can_do_nothing(victim: Victim, visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<!doctype html><title>A file</title>")
    assert set(attack(visit(file.as_uri()), victim.url, victim.file).values()) <= {"blocked", "opaque"}


def test_a_rebound_page_can_do_nothing(victim: Victim, visit: Visit, browser: Browser) -> None:
    """The page comes from the attacker; all further requests of the same origin reach this server."""
    base = f"http://rebound.example:{victim.port}"
    context = browser.new_context()
    tab = context.new_page()

    def first_answer(route: Route) -> None:
        route.fulfill(body="<!doctype html><title>Rebound</title>", content_type="text/html")

    tab.route(f"{base}/start", first_answer)
    tab.goto(f"{base}/start")
    assert set(attack(tab, base, victim.file).values()) == {421}
    context.close()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "ocr.lan", "server"])
def test_the_own_page_can_do_everything(open_site: Site, visit: Visit, name: str) -> None:
    open_site.reset()
    base = f"http://{name}:{port_of(open_site)}"
    tab = visit(f"{base}/ui/")
    tab.locator("#model:not(:empty)").wait_for(state="attached")
    found = attack(tab, base)
    assert (found["models"], found["files"], found["upload"], found["metrics"]) == (200, 200, 200, 200)
    assert (found["text"], found["blob"]) == (415, 415)
    answer = tab.evaluate(
        """async (chat) => (await fetch("/v1/chat/completions", {
            method: "POST", body: JSON.stringify(chat), headers: {"content-type": "application/json"}})).status""",
        chat(),
    )
    assert answer == 200
    for file in httpx.get(f"{open_site.url}/v1/files").json()["data"]:
        httpx.delete(f"{open_site.url}/v1/files/{file['id']}")


def test_the_documentation_can_send_requests(open_site: Site, visit: Visit) -> None:
    tab = visit(f"http://ocr.lan:{port_of(open_site)}/docs")
    tab.locator("#operations-Service-health_health_get").click()
    tab.get_by_role("button", name="Try it out").click()
    tab.get_by_role("button", name="Execute").click()
    tab.locator(".responses-table.live-responses-table .response-col_status", has_text="200").wait_for()


def test_links_of_other_sites_lead_to_the_page(open_site: Site, elsewhere: int, visit: Visit) -> None:
    tab = visit(f"http://evil.example:{elsewhere}/")
    base = f"http://localhost:{port_of(open_site)}"
    with tab.expect_navigation():
        tab.evaluate("(base) => { location.href = base + '/'; }", base)
    tab.locator("#model:not(:empty)").wait_for(state="attached")
    assert tab.url == f"{base}/ui/"


def test_a_named_page_may_use_the_server(settings: Settings, elsewhere: int, visit: Visit) -> None:
    for site in serve_site(settings, CORS_ORIGINS=f"http://page.example:{elsewhere}"):
        base = f"http://127.0.0.1:{port_of(site)}"
        found = attack(visit(f"http://page.example:{elsewhere}/"), base)
        assert (found["models"], found["text"]) == (200, 415)
        found = attack(visit(f"http://evil.example:{elsewhere}/"), base)
        assert set(found.values()) <= {"blocked", "opaque"}
