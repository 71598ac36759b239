"""Which requests a batch's input file has, by its kind."""

from __future__ import annotations

from sqlalchemy import RowMapping

from ocr_server.batches.documents import PdfRequests, ZipRequests
from ocr_server.batches.endpoint import Endpoints
from ocr_server.batches.jsonl import JsonlRequests
from ocr_server.batches.requests import Requests
from ocr_server.batches.storage import Storage
from ocr_server.runtime import MEGA, Runtime

ZIP_RATIO = 10
"""What the files in a zip may have, unpacked, in multiples of the largest upload: pictures hardly shrink."""


def requests_of(batch: RowMapping, storage: Storage, runtime: Runtime, endpoints: Endpoints) -> Requests:
    """Requests of a batch, by the kind of its input file."""
    settings, file_id = runtime.settings, batch["input_file_id"]
    endpoint, most = batch["endpoint"], settings.MAX_BATCH_REQUESTS
    if batch["kind"] == "jsonl":
        return JsonlRequests(storage, file_id, endpoint, most=most, longest=settings.MAX_BODY_MB * MEGA)
    body, largest = batch["body"].encode(), settings.MAX_IMAGE_MB * MEGA
    if batch["kind"] == "pdf":
        return PdfRequests(
            storage,
            file_id,
            runtime.intake,
            body,
            lambda file: endpoints[endpoint].understand(body, settings, file)[1],
            most=most,
            largest=largest,
        )
    return ZipRequests(
        storage,
        file_id,
        body,
        most=most,
        largest=largest,
        most_bytes=ZIP_RATIO * settings.MAX_FILE_MB * MEGA,
    )
