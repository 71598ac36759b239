"""The wire types of `/v1/batches`, as OpenAI's SDK defines them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ocr_server.dialects.wire import Answer, ExpiresAfter, Wire

NO_NUL = r"^[^\x00]*$"
MetadataKey = Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]
MetadataValue = Annotated[str, Field(max_length=512, pattern=NO_NUL)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16, fail_fast=True)]


class BatchRequest(Wire):
    input_file_id: str
    """Id of a file that was uploaded with the purpose `batch`: JSONL, a PDF, or a zip of pictures."""
    endpoint: str
    """`/v1/chat/completions`, `/v1/responses` or `/v1/ocr`."""
    completion_window: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,2}h|[1-9][0-9]?d)$")]
    """Time in which the batch is answered: `24h`, or another number of hours or days (`72h`, `7d`)."""
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
    request: Annotated[dict[str, Any], Field(max_length=1000)] | None = None
    """Extension of this server, for a PDF or zip: the body of each request, without its picture or document."""

    @property
    def window_seconds(self) -> int:
        count, unit = int(self.completion_window[:-1]), self.completion_window[-1]
        return count * (3600 if unit == "h" else 86_400)


class BatchError(Answer):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(Answer):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchRequestCounts(Answer):
    total: int
    completed: int
    failed: int


class InputTokensDetails(Answer):
    cached_tokens: int = 0


class OutputTokensDetails(Answer):
    reasoning_tokens: int = 0


class BatchUsage(Answer):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class Batch(Answer):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    errors: BatchErrors | None
    """Problems of the input file, if the status is `failed`."""
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchList(Answer):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
