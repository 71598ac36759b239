"""The names that the server answers to, the web pages that may use it, and redirects that name no host."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import Settings
from ocr_server.app import create_app
from ocr_server.runtime import Runtime
from ocr_server.transport.boundary import reachable_by
from tests.ocr_server.conftest import CHAT, WHITE, FakeEngine, chat, client_of, error_of
from tests.reliability.served import served

KEY = "sk-correct-horse"
BEARER = {"authorization": f"Bearer {KEY}"}
OCR = "/v1/ocr"
PAGE = "https://page.example"
PUBLIC = ["/", "/health", "/livez", "/readyz", "/ping", "/ui/", "/ui/app.js", "/docs", "/openapi.json"]


@asynccontextmanager
async def server(settings: Settings, **more: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Runtime.build(Settings(**{**settings.model_dump(), **more}), FakeEngine()))
    async with client_of(app) as client:
        yield client


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        [
            *[
                "localhost",
                "LocalHost:8000",
                "localhost.",
                "localhost.:80",
                "app.localhost",
                "server",
                "ocr_server:8000",
            ],
            *["127.0.0.1", "192.168.1.5:8000", "127.1", "8.8.8.8", "[::1]", "[::1]:8000", "[2001:DB8::1]:80"],
            *["[fe80::1%25eth0]", "ocr.local", "host.docker.internal:8000", "ocr.lan", "nas.home.arpa", "ocr.local."],
            *["ocr.team.svc.cluster.local", "ocr.team.svc", "ocr.test", "server:", ""],
        ],
    )
    async def test_private_names_are_answered(self, client: httpx.AsyncClient, host: str) -> None:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            *["evil.example", "EVIL.example:8000", "evil.example.", "127.0.0.1.nip.io", "localhost.evil.example"],
            *["evil-local.com", "evillocal.org", "1.2.3.4.com", "internal.com", "ocr.fritz.box", "a.local.com:80"],
        ],
    )
    async def test_public_names_are_refused(self, client: httpx.AsyncClient, host: str) -> None:
        for path in ("/v1/models", "/", "/health", "/ui/", "/metrics"):
            response = await client.get(path, headers={"host": host})
            error = error_of(response, 421)
            assert error["code"] == "host_not_allowed"
            assert "ALLOWED_HOSTS" in error["message"]

    @pytest.mark.parametrize(
        "host",
        ["a b", "user@localhost", "localhost/evil.example", "localhost:x", "[::1", "[]", "[evil.example]", ":80", ".."],
    )
    async def test_invalid_hosts_are_refused(self, client: httpx.AsyncClient, host: str) -> None:
        assert (await client.get("/v1/models", headers={"host": host})).status_code in (400, 421)

    async def test_a_request_has_one_host(self, client: httpx.AsyncClient) -> None:
        for names in (["localhost", "evil.example"], ["evil.example", "localhost"], ["localhost", "localhost"]):
            response = await client.get("/v1/models", headers=[("host", name) for name in names])
            assert error_of(response, 400)["param"] == "host"

    async def test_forwarded_hosts_are_not_trusted(self, client: httpx.AsyncClient) -> None:
        for name in ("x-forwarded-host", "forwarded", "x-host", "x-original-host"):
            response = await client.get("/v1/models", headers={"host": "evil.example", name: "localhost"})
            assert response.status_code == 421

    async def test_the_own_name_is_answered(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(socket, "gethostname", lambda: "Ocr.Company.example")
        async with server(settings) as client:
            assert (await client.get("/v1/models", headers={"host": "ocr.company.example"})).status_code == 200
            assert (await client.get("/v1/models", headers={"host": "a.company.example"})).status_code == 421

    async def test_allowed_hosts(self, settings: Settings) -> None:
        async with server(settings, ALLOWED_HOSTS="ocr.Example.com, *.example.org") as client:
            for host in ("OCR.example.com:443", "ocr.example.com.", "a.b.example.org"):
                assert (await client.get("/v1/models", headers={"host": host})).status_code == 200, host
            for host in ("example.com", "a.ocr.example.com", "example.org", "evilexample.org"):
                assert (await client.get("/v1/models", headers={"host": host})).status_code == 421, host
        async with server(settings, ALLOWED_HOSTS="*") as client:
            assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 200

    async def test_with_keys_any_name_is_answered(self, settings: Settings) -> None:
        async with server(settings, API_KEYS=KEY) as client:
            assert (await client.get("/v1/models", headers={"host": "any.example", **BEARER})).status_code == 200
            assert (await client.get("/v1/models", headers={"host": "any.example"})).status_code == 401

    async def test_over_a_real_connection(self, settings: Settings) -> None:
        app = create_app(Runtime.build(settings, FakeEngine()))
        requests = {
            b"GET /v1/models HTTP/1.0\r\n\r\n": b"200",
            b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n": b"421",
            b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n": b"200",
            b"GET http://localhost/v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n": b"421",
            b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n": b"400",
        }
        with served(app) as address:
            for request, status in requests.items():
                with socket.create_connection(address, timeout=30) as connection:
                    connection.sendall(request)
                    answer = b"".join(iter(lambda: connection.recv(65536), b""))
                assert answer.split(b" ", 2)[1] == status, request
                assert b"http://evil" not in answer.lower()


FOREIGN = [
    {"origin": PAGE},
    {"origin": "null"},
    {"origin": "file://"},
    {"origin": "http://server:3000"},
    {"origin": "https://server:80"},
    {"origin": "http://server.evil.example"},
    {"origin": "chrome-extension://server"},
    {"origin": "moz-extension://8a2b"},
    {"origin": PAGE, "sec-fetch-site": "cross-site"},
    {"origin": "http://server", "sec-fetch-site": "cross-site"},  # the page has another scheme
    {"origin": "http://a.server", "sec-fetch-site": "same-site"},
    {"origin": "chrome-extension://abc", "sec-fetch-site": "none"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "anything"},
]
OWN = [
    {},
    {"origin": "http://server"},
    {"origin": "http://SERVER:80"},
    {"origin": "https://server"},  # behind a proxy with TLS
    {"origin": "https://server:443"},
    {"origin": "http://server", "sec-fetch-site": "same-origin"},
    {"origin": "https://ocr.example.com", "sec-fetch-site": "same-origin"},  # a proxy that changes the host
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none"},
]


def form(**more: str) -> dict[str, Any]:
    return {"files": {"file": ("a.png", b"\x89PNG")}, "data": more}


class TestPages:
    @pytest.mark.parametrize("headers", FOREIGN)
    async def test_other_pages_can_do_nothing(
        self, client: httpx.AsyncClient, engine: FakeEngine, headers: dict[str, str]
    ) -> None:
        for method, path, body in (
            ("POST", CHAT, {"json": chat()}),
            ("POST", CHAT, {"content": json.dumps(chat())}),
            ("POST", OCR, form()),
            ("GET", "/v1/models", {}),
            ("GET", "/metrics", {}),
            ("GET", "/nothing", {}),
            ("DELETE", "/v1/files/file-1", {}),
            ("POST", "/health", {}),
        ):
            response = await client.request(method, path, headers=headers, **body)
            error = error_of(response, 403)
            assert error["code"] == "origin_not_allowed"
            assert "CORS_ORIGINS" in error["message"]
            assert "access-control-allow-origin" not in response.headers
        assert engine.pages == []

    @pytest.mark.parametrize("headers", FOREIGN)
    async def test_other_pages_can_link_to_public_pages(
        self, client: httpx.AsyncClient, headers: dict[str, str]
    ) -> None:
        for path in PUBLIC:
            response = await client.get(path, headers=headers)
            assert response.status_code == 200, path
            assert "access-control-allow-origin" not in response.headers
            assert response.headers["cross-origin-resource-policy"] == "same-origin"

    @pytest.mark.parametrize("headers", OWN)
    async def test_own_pages_and_programs_can_do_everything(
        self, client: httpx.AsyncClient, headers: dict[str, str]
    ) -> None:
        assert (await client.post(CHAT, json=chat(), headers=headers)).status_code == 200
        assert (await client.get("/v1/models", headers=headers)).status_code == 200

    async def test_several_origins(self, client: httpx.AsyncClient) -> None:
        headers = [("origin", "http://server"), ("origin", PAGE)]
        assert (await client.get("/v1/models", headers=headers)).status_code == 403

    async def test_keys_do_not_open_the_server_for_other_pages(self, settings: Settings) -> None:
        async with server(settings, API_KEYS=KEY) as client:
            assert (await client.get("/v1/models", headers={"origin": PAGE, **BEARER})).status_code == 403

    async def test_named_origins(self, settings: Settings) -> None:
        named = f"{PAGE.upper()}, chrome-extension://abc"
        async with server(settings, CORS_ORIGINS=named) as client:
            for origin in (PAGE, "chrome-extension://abc"):
                headers = {"origin": origin, "sec-fetch-site": "cross-site"}
                response = await client.post(CHAT, json=chat(), headers=headers)
                assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, origin)
            for origin in ("null", "https://other.example", "chrome-extension://abcd"):
                assert (await client.get("/v1/models", headers={"origin": origin})).status_code == 403
        async with server(settings, CORS_ORIGINS="*") as client:
            for origin in ("null", PAGE):
                assert (await client.get("/v1/models", headers={"origin": origin})).status_code == 200

    async def test_a_named_page_can_read_why_it_was_refused(self, settings: Settings) -> None:
        async with server(settings, CORS_ORIGINS=PAGE) as client:
            response = await client.get("/v1/models", headers={"origin": PAGE, "host": "evil.example"})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (421, PAGE)

    async def test_preflights_for_a_private_network(self, settings: Settings) -> None:
        asks = {"access-control-request-method": "POST", "access-control-request-private-network": "true"}
        async with server(settings, CORS_ORIGINS=PAGE) as client:
            allowed = await client.options(CHAT, headers={"origin": PAGE, **asks})
            assert allowed.headers["access-control-allow-private-network"] == "true"
            other = await client.options(CHAT, headers={"origin": "https://evil.example", **asks})
            assert "access-control-allow-origin" not in other.headers

    async def test_preflights_are_refused_by_default(self, client: httpx.AsyncClient) -> None:
        response = await client.options(CHAT, headers={"origin": PAGE, "access-control-request-method": "POST"})
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]


class TestContentTypes:
    @pytest.mark.parametrize(
        "content_type",
        ["application/x-www-form-urlencoded", "text/plain", "text/plain; charset=UTF-8", "", "multipart"],
    )
    async def test_json_under_another_type(self, client: httpx.AsyncClient, content_type: str) -> None:
        for path, value in ((CHAT, chat()), (OCR, {"document": {"type": "image_url", "image_url": WHITE}})):
            body, headers = json.dumps(value), {"content-type": content_type} if content_type else {}
            assert (await client.post(path, content=body, headers=headers)).status_code == 200
            for mark in ({"origin": "http://server"}, {"sec-fetch-site": "same-origin"}):
                error = error_of(await client.post(path, content=body, headers=headers | mark), 415)
                assert "application/json" in error["message"]

    @pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "text/x+json"])
    async def test_declared_json(self, client: httpx.AsyncClient, content_type: str) -> None:
        headers = {"origin": "http://server", "content-type": content_type}
        assert (await client.post(CHAT, content=json.dumps(chat()), headers=headers)).status_code == 200

    async def test_node_is_not_a_browser(self, client: httpx.AsyncClient) -> None:
        """Node's fetch sends `sec-fetch-mode`, and declares a string as plain text."""
        headers = {"sec-fetch-mode": "cors", "content-type": "text/plain;charset=UTF-8"}
        assert (await client.post(CHAT, content=json.dumps(chat()), headers=headers)).status_code == 200


class TestRedirects:
    @pytest.mark.parametrize(
        ("path", "location"),
        [
            ("/ui", "./ui/"),
            ("/ui?a=b&c=//d", "./ui/?a=b&c=//d"),
            ("/health/?x", "../health?x"),
            ("/health//", "../../health"),
            ("/v1/batches/a%20b%3F/", "../a%20b%3F"),
            ("/v1/batches/a:b/", "../a%3Ab"),
        ],
    )
    async def test_redirects_are_relative(self, settings: Settings, tmp_path: Path, path: str, location: str) -> None:
        files = {"BATCHES": True, "DATABASE_URL": f"sqlite:///{tmp_path}/db", "STORAGE_URL": str(tmp_path / "files")}
        async with server(settings, API_KEYS=KEY, **files) as client:
            response = await client.get(path, headers={"host": "evil.example/x?", **BEARER})
            assert (response.status_code, response.headers["location"]) == (307, location)

    async def test_redirects_lead_to_the_page(self, client: httpx.AsyncClient) -> None:
        for path, target in (("/ui", "/ui/"), ("/health/", "/health")):
            response = await client.get(path, follow_redirects=True)
            assert (response.status_code, response.url.path) == (200, target)


class TestNotice:
    def test_open_to_the_network(self) -> None:
        text = reachable_by("0.0.0.0", keys=False, origins=[])
        for part in ("everyone who can connect to 0.0.0.0", "API_KEYS", "HOST=127.0.0.1", "other sites cannot"):
            assert part in text
        assert "\n" not in text

    def test_closed(self) -> None:
        assert "this machine can use" in reachable_by("127.0.0.1", keys=False, origins=[])
        assert "HOST=" not in reachable_by("::1", keys=False, origins=[])
        assert "has an API key" in reachable_by("0.0.0.0", keys=True, origins=[])

    def test_pages(self) -> None:
        assert PAGE in reachable_by("0.0.0.0", keys=True, origins=[PAGE])
        assert "all sites" in reachable_by("0.0.0.0", keys=True, origins=["*"])
