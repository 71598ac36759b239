"""Chooses how the requests of a batch are read, by the kind of its input file."""

from __future__ import annotations

from sqlalchemy import RowMapping

from ocr_server.batches.documents import PdfRequests, ZipRequests
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.jsonl import JsonlRequests
from ocr_server.batches.requests import Requests
from ocr_server.batches.storage import Storage
from ocr_server.runtime import MEGA, Runtime

ZIP_RATIO = 10
"""Maximum size of the uncompressed files in a zip, as a multiple of MAX_FILE_MB. Pictures hardly compress."""


def requests_of(batch: RowMapping, storage: Storage, runtime: Runtime, endpoints: Endpoints) -> Requests:
    """Return the requests of a batch."""
    settings, file_id = runtime.settings, batch["input_file_id"]
    endpoint, max_requests = batch["endpoint"], settings.MAX_BATCH_REQUESTS
    if batch["kind"] == "jsonl":
        return JsonlRequests(
            storage, file_id, endpoint, max_requests=max_requests, max_line_bytes=settings.MAX_BODY_MB * MEGA
        )
    body, max_source_bytes = batch["body"].encode(), settings.MAX_IMAGE_MB * MEGA
    if batch["kind"] == "pdf":
        return PdfRequests(
            storage,
            file_id,
            runtime.intake,
            body,
            lambda file: endpoints[endpoint].understand(body, settings, file)[1],
            max_requests=max_requests,
            max_bytes=max_source_bytes,
        )
    return ZipRequests(
        storage,
        file_id,
        body,
        max_requests=max_requests,
        max_member_bytes=max_source_bytes,
        max_bytes=ZIP_RATIO * settings.MAX_FILE_MB * MEGA,
    )
