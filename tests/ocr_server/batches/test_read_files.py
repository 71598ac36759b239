"""Files that are read: uploads for other purposes than batches, ids and signed URLs in requests."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from ocr_server.batches.database import files
from ocr_server.batches.signing import Signer, parse_url
from ocr_server.memory import MemoryBudget, Use
from tests.ocr_server.batches.conftest import Serve, Served, refusal, request
from tests.ocr_server.conftest import CHAT, WHITE, FakeEngine, chat, error_of, message, says
from tests.ocr_server.dialects.ocr.requests import OCR, pdf

PNG = base64.b64decode(WHITE.partition(",")[2])
KEYS = "alice:sk-a,bob:sk-b"


async def uploaded(served: Served, data: bytes = PNG, *, key: str = "EMPTY", **more: Any) -> str:
    """Upload a file and return its id."""
    api = served.sdk(key)
    purpose = more.pop("purpose", "user_data")
    file_id: str = (await api.files.create(file=("scan.png", data), purpose=purpose, **more)).id
    return file_id


def headers(key: str = "EMPTY") -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def by_id(file_id: str) -> dict[str, Any]:
    """A chat request with the id of a file."""
    return chat(message({"type": "file", "file": {"file_id": file_id}}, "Free OCR."))


async def ocr(served: Served, document: dict[str, Any], key: str = "EMPTY") -> httpx.Response:
    body = {"model": "deepseek-ocr", "document": document}
    return await served.http.post(OCR, json=body, headers=headers(key))


async def signed_url(served: Served, file_id: str, key: str = "EMPTY", **params: Any) -> str:
    response = await served.http.get(f"/v1/files/{file_id}/url", params=params, headers=headers(key))
    assert response.status_code == 200, response.text
    url: str = response.json()["url"]
    return url


class TestUpload:
    @pytest.mark.parametrize("purpose", ["user_data", "vision", "assistants", "batch"])
    async def test_purposes_of_openai(self, served: Served, purpose: Any) -> None:
        file = await served.api.files.create(file=("scan.png", PNG), purpose=purpose)
        assert file.purpose == purpose
        assert [each.id async for each in served.api.files.list(purpose=purpose)] == [file.id]

    async def test_what_mistrals_clients_need(self, served: Served) -> None:
        form = {"purpose": "ocr", "visibility": "workspace", "expiry": "2"}
        response = await served.http.post("/v1/files", data=form, files={"file": ("a.pdf", pdf(1))})
        file = response.json()
        assert response.headers["x-ignored-parameters"] == "visibility"
        assert (file["purpose"], file["sample_type"], file["source"]) == ("ocr", "ocr_input", "upload")
        assert (file["size_bytes"], file["mimetype"]) == (file["bytes"], "application/pdf")
        assert file["expires_at"] == file["created_at"] + 2 * 3600
        assert file["deleted"] is False

    async def test_the_purpose_can_be_left_out(self, served: Served) -> None:
        response = await served.http.post("/v1/files", files={"file": ("a.png", PNG)})
        assert response.json()["purpose"] == "user_data"

    @pytest.mark.parametrize("purpose", ["fine-tune", "evals", "batch_output", "x" * 10_000])
    async def test_other_purposes_are_refused(self, served: Served, purpose: str) -> None:
        response = await served.http.post("/v1/files", data={"purpose": purpose}, files={"file": PNG})
        assert error_of(response, 400)["param"] == "purpose"

    async def test_a_file_that_could_never_be_read_is_refused(self, serve: Serve) -> None:
        async with serve(MAX_IMAGE_MB=1, MAX_FILE_MB=2) as served:
            assert await uploaded(served, b"{" * 1_500_000, purpose="batch")
            with pytest.raises(openai.APIStatusError) as caught:
                await uploaded(served, b"{" * 1_500_000)
            assert refusal(caught.value) == (413, "file", "too_large")

    async def test_lists_with_pages_as_mistrals_clients_ask_for_them(self, served: Served) -> None:
        made = [await uploaded(served, purpose=purpose) for purpose in ("user_data", "batch", "vision")]

        async def listed(**params: Any) -> list[str]:
            response = await served.http.get("/v1/files", params=params)
            body = response.json()
            assert body["total"] == (3 if len(params) <= 2 else len(body["data"]))
            return [file["id"] for file in body["data"]]

        assert await listed(page=0, page_size=2) == made[:0:-1]
        assert await listed(page=1, page_size=2) == made[:1]
        assert await listed(page=2, page_size=2) == []
        assert await listed(page=0, page_size=9, sample_type=["batch_request"]) == [made[1]]
        assert await listed(page=0, page_size=9, source=["mistral"]) == []
        assert await listed(page=0, page_size=9, source=["upload", "repository"], search="scan") == made[::-1]
        assert await listed(page=0, page_size=9, search="%") == []
        refused = await served.http.get("/v1/files", params={"mimetypes": "image/png"})
        assert "mimetypes" in error_of(refused, 400)["message"]


class TestIds:
    async def test_in_chat_and_ocr(self, served: Served) -> None:
        file_id = await uploaded(served)
        answer = await served.http.post(CHAT, json=by_id(file_id))
        assert answer.json()["choices"][0]["message"]["content"] == "Hello"
        answer = await ocr(served, {"type": "file", "file_id": file_id})
        assert answer.json()["pages"][0]["markdown"] == "Hello"
        assert len(served.engine.pages) == 2

    async def test_as_other_clients_write_them(self, served: Served) -> None:
        file_id = await uploaded(served)
        by_mistral = chat(message({"type": "file", "file_id": file_id}))
        assert (await served.http.post(CHAT, json=by_mistral)).status_code == 200
        for kind in ("input_image", "input_file"):
            message_ = {"role": "user", "content": [{"type": kind, "file_id": file_id}]}
            body = {"model": "deepseek-ocr", "input": [message_]}
            answer = await served.http.post("/v1/responses", json=body)
            assert answer.status_code == 200, answer.text
        assert len(served.engine.pages) == 3

    async def test_a_pdf(self, served: Served) -> None:
        file_id = await uploaded(served, pdf(3))
        answer = await ocr(served, {"file_id": file_id})
        assert len(answer.json()["pages"]) == 3

    async def test_in_a_batch(self, served: Served) -> None:
        file_id = await uploaded(served)
        done = await served.ended(await served.batch([request("a", by_id(file_id)), request("b", by_id("file-b"))]))
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 1)
        lines = await served.lines(done.error_file_id)
        assert lines["b"]["response"]["body"]["error"]["code"] == "file_not_found"

    @pytest.mark.parametrize("file_id", ["file-1", "../batches.db", "", "a" * 5000, "a\x00b", "é"])
    async def test_unknown_ones_are_not_found(self, served: Served, file_id: str) -> None:
        error = error_of(await ocr(served, {"file_id": file_id}), 404)
        assert (error["code"], error["param"]) == ("file_not_found", "document.file_id")
        error = error_of(await served.http.post(CHAT, json=by_id(file_id)), 404)
        assert (error["code"], error["param"]) == ("file_not_found", "messages[0].content[0].file.file_id")

    async def test_each_key_has_its_own_files(self, serve: Serve) -> None:
        async with serve(API_KEYS=KEYS) as served:
            file_id = await uploaded(served, key="sk-a")
            assert (await ocr(served, {"file_id": file_id}, "sk-a")).status_code == 200
            assert error_of(await ocr(served, {"file_id": file_id}, "sk-b"), 404)["code"] == "file_not_found"
            assert error_of(await served.http.get(f"/v1/files/{file_id}/url", headers=headers("sk-b")), 404)
            api: AsyncOpenAI = served.sdk("sk-b")
            done = await served.ended(await served.batch([request("a", by_id(file_id))], api), api=api)
            assert (done.request_counts.completed, done.request_counts.failed) == (0, 1)

    async def test_deleted_and_expired_files_are_not_found(self, served: Served) -> None:
        deleted, expired, gone = [await uploaded(served) for _ in range(3)]
        await served.api.files.delete(deleted)
        await served.change(files, expired, expires_at=int(time.time()))
        await served.app.state.batches.files.storage.run(served.app.state.batches.files.storage.remove, gone)
        for file_id in (deleted, expired, gone):
            assert error_of(await ocr(served, {"file_id": file_id}), 404)["param"] == "document.file_id"

    async def test_a_file_that_is_no_picture(self, served: Served) -> None:
        file_id = await uploaded(served, b"{}", purpose="batch")
        assert error_of(await ocr(served, {"file_id": file_id}), 400)["param"] == "document.file_id"

    async def test_a_file_beyond_the_limit_is_not_loaded(self, serve: Serve) -> None:
        async with serve(MAX_IMAGE_MB=1, MAX_FILE_MB=2) as served:
            file_id = await uploaded(served, b"{" * 1_500_000, purpose="batch")
            assert error_of(await ocr(served, {"file_id": file_id}), 413)["param"] == "document.file_id"

    async def test_files_are_counted_as_memory(self, serve: Serve) -> None:
        async with serve(MEMORY_BUDGET_MB=100) as served:
            file_id = await uploaded(served, PNG + b"\0" * 8_000_000)  # more than a client is guaranteed
            memory: MemoryBudget = served.app.state.runtime.memory
            with memory.reserve(Use.SOURCES, 69_500_000):
                assert error_of(await ocr(served, {"file_id": file_id}), 429)["code"] == "too_many_bytes"
            assert (await ocr(served, {"file_id": file_id})).status_code == 200
            assert memory.total == 0

    async def test_a_server_without_files_says_so(self, client: httpx.AsyncClient) -> None:
        body = {"model": "deepseek-ocr", "document": {"file_id": "file-1"}}
        error = error_of(await client.post(OCR, json=body), 400)
        assert (error["code"], error["param"]) == ("files_not_stored", "document.file_id")
        assert error_of(await client.get("/v1/files/file-1/signed?expires=1&signature=a"), 404)


class TestSignedUrls:
    async def test_it_is_read_from_the_storage_under_any_name(self, served: Served) -> None:
        url = await signed_url(served, await uploaded(served))
        assert url.startswith("http://server/v1/files/file-")
        path = url.removeprefix("http://server")
        for each in (url, f"https://ocr.example.com/some/prefix{path}", f"http://[::1]:9{path}#page=1"):
            answer = await ocr(served, {"document_url": each})  # the settings of these tests forbid to fetch
            assert answer.status_code == 200, answer.text
            assert (await served.http.post(CHAT, json=chat(message(picture_of(each))))).status_code == 200

    async def test_it_needs_no_key(self, serve: Serve) -> None:
        async with serve(API_KEYS=KEYS) as served:
            url = await signed_url(served, await uploaded(served, key="sk-a"), "sk-a", expiry=1)
            response = await served.http.get(url)
            assert (response.status_code, response.content) == (200, PNG)
            assert response.headers["cache-control"] == "no-store"
            assert (await ocr(served, {"document_url": url}, "sk-b")).status_code == 200  # whoever has it may use it
            for other in ("/v1/files", url.partition("/signed")[0], url.replace("/signed?", "/content?")):
                assert error_of(await served.http.get(other), 401)
            assert (await served.http.delete(url)).status_code == 401

    async def test_it_expires(self, served: Served) -> None:
        signer: Signer = served.app.state.batches.signer
        url = await signed_url(served, file_id := await uploaded(served), expiry=168)
        signed = parse_url(url)
        assert signed is not None
        assert 168 * 3600 - 60 < signed.expires - time.time() <= 168 * 3600
        old = await signer.sign(file_id, -1)
        path = f"/v1/files/{file_id}/signed?expires={old.expires}&signature={old.signature}"
        assert error_of(await served.http.get(path), 403)["code"] == "signed_url_expired"
        error = error_of(await ocr(served, {"document_url": f"http://server{path}"}), 400)
        assert (error["code"], error["param"]) == ("signed_url_expired", "document.document_url")

    async def test_a_changed_one_is_only_a_url(self, served: Served) -> None:
        """It could be that of another server, so that the settings for URLs apply: here, none are fetched."""
        url, other = await signed_url(served, await uploaded(served)), await uploaded(served)
        signed = parse_url(url)
        assert signed is not None
        for changed in (
            url.replace(signed.file_id, other),
            url.replace(f"expires={signed.expires}", f"expires={signed.expires + 1}"),
            url.replace(signed.signature, "0" * 64),
            url + "&x=1",
        ):
            assert error_of(await ocr(served, {"document_url": changed}), 400)["code"] == "image_url_not_allowed"
        for changed in (url.replace(signed.file_id, other), url.replace(signed.signature, "0" * 64), url[:-64]):
            assert error_of(await served.http.get(changed), 403)["code"] == "signature_invalid"
        assert error_of(await served.http.get(url[:-1] + "é"), 403)

    async def test_a_deleted_file_has_none(self, served: Served) -> None:
        url = await signed_url(served, file_id := await uploaded(served))
        await served.api.files.delete(file_id)
        assert error_of(await served.http.get(url), 404)["code"] == "file_not_found"
        assert error_of(await ocr(served, {"document_url": url}), 404)["param"] == "document.document_url"
        assert error_of(await served.http.get(f"/v1/files/{file_id}/url"), 404)

    async def test_servers_with_one_database_accept_each_others(self, serve: Serve) -> None:
        async with serve() as one, serve(FakeEngine(says("Other"))) as other:
            url = await signed_url(one, await uploaded(one))
            assert (await ocr(other, {"document_url": url})).json()["pages"][0]["markdown"] == "Other"

    async def test_servers_that_create_the_key_at_the_same_time(self, serve: Serve) -> None:
        async with serve() as one, serve() as other:
            batches = one.app.state.batches, other.app.state.batches
            signed = await asyncio.gather(*(each.signer.sign("file-1", 60) for each in batches))
            assert await batches[1].signer.is_valid(signed[0])

    @pytest.mark.parametrize("expiry", ["0", "169", "x", "1e9"])
    async def test_the_lifetime_is_limited(self, served: Served, expiry: str) -> None:
        file_id = await uploaded(served)
        assert error_of(await served.http.get(f"/v1/files/{file_id}/url?expiry={expiry}"), 400)

    async def test_a_page_of_another_site_may_link_to_it(self, served: Served) -> None:
        url = await signed_url(served, await uploaded(served))
        link = {"sec-fetch-site": "cross-site"}
        assert (await served.http.get(url, headers=link)).status_code == 200
        assert error_of(await served.http.get(f"{urlsplit(url).path}/x", headers=link), 403)

    @pytest.mark.parametrize(
        "url", ["http://a/" + "v1/files/" * 1000, "https://" + "a" * 100_000, "data:" + "/" * 5000]
    )
    def test_other_urls_are_recognised_quickly(self, url: str) -> None:
        assert parse_url(url) is None


async def test_metrics_show_what_is_stored(served: Served) -> None:
    for purpose in ("user_data", "user_data", "batch"):
        file_id = await uploaded(served, purpose=purpose)
    await ocr(served, {"file_id": file_id})
    await served.app.state.batches.files.sweep()
    lines = (await served.http.get("/metrics")).text.splitlines()
    values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[:1] != "#"}
    assert values['ocr_stored_files{purpose="user_data"}'] == 2
    assert values['ocr_stored_files{purpose="batch"}'] == 1
    assert values["ocr_stored_bytes"] == 3 * (len(PNG) + 4096)
    assert values["ocr_stored_bytes_limit"] == 20_000_000_000
    assert values['ocr_file_uploads_total{outcome="stored"}'] >= 3
    assert values['ocr_file_reads_total{by="id"}'] >= 1


def picture_of(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}
