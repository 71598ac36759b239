"""The output folder of a corpus job: which documents to read, divided into shards, and their results.

    job.json              the settings of the job; it can only be resumed with the same settings
    sources.parquet       all documents, with the number of their shard
    pages/00012.parquet   one row for each page of a shard
    documents/…           alternatively, markdown and JSON for each document
    done/00012.json       marks a finished shard: the numbers of documents and pages, and what failed, with the reason

The file in `done` is written last. A shard that was interrupted has no such file, and is read again from its beginning.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

Format = Literal["parquet", "markdown"]


class CorpusError(Exception):
    """The job cannot be started or resumed. The message says why."""


class Document(NamedTuple):
    """A document of the corpus."""

    number: int
    """Position in the corpus, counted from 0."""
    shard: int
    """Number of the shard that the document belongs to, counted from 0."""
    url: str


@dataclass(frozen=True)
class CorpusPage:
    """A page that was read, or that failed. A document that cannot be opened has a single entry: page 0 of 0."""

    url: str
    page: int
    """Number of the page, counted from 1."""
    page_count: int
    markdown: str = ""
    answer: str = ""
    """The unmodified output of the model."""
    blocks: str = "[]"
    """The blocks of the page as JSON: label, text, and bounding boxes in pixels of the page."""
    width: int = 0
    height: int = 0
    finish_reason: str = "error"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Shard(NamedTuple):
    """Summary of one or more finished shards."""

    documents: int
    pages: int
    failed: list[dict[str, Any]]
    """One entry with `url`, `page` and `error` for each page or document that failed."""


class Corpus:
    """The output folder of a corpus job."""

    def __init__(self, folder: str) -> None:
        """Args:
        folder: a path, or an fsspec URL such as `s3://bucket/prefix`.
        """
        self._system, self._root = fsspec.core.url_to_fs(folder)

    def begin(self, sources: Callable[[], Iterable[str]], *, shard_size: int, job: Mapping[str, Any]) -> bool:
        """Start a new job, or prepare to resume the job in the folder.

        Args:
            sources: returns the paths or URLs of the documents. It is not called when a job is resumed.
            shard_size: number of documents in a shard.
            job: settings that affect the results.

        Returns:
            Whether a job is resumed.

        Raises:
            CorpusError: if there are no documents, or if the folder contains a job with different settings.
        """
        job = {"shard_size": shard_size, **job}
        if self._system.exists(self._path("job.json")):
            known = json.loads(self._read("job.json"))
            if differences := sorted(name for name in known.keys() | job.keys() if known.get(name) != job.get(name)):
                different = " and ".join(f"another {name} value" for name in differences)
                raise CorpusError(
                    f"The folder contains a job that was started with {different}. Use the same values to resume it, "
                    "or choose another folder."
                )
            return True
        urls = sorted(set(sources()))
        if not urls:
            raise CorpusError("There is nothing to read: no documents were found.")
        table = pa.table({"url": urls, "shard": [number // shard_size for number in range(len(urls))]})
        self._write("sources.parquet", _parquet(table))
        self._write("job.json", json.dumps(job, indent=1).encode())
        return False

    def documents(self) -> list[Document]:
        """Return all documents of the corpus."""
        table = pq.read_table(io.BytesIO(self._read("sources.parquet")))
        pairs = zip(table["url"].to_pylist(), table["shard"].to_pylist(), strict=True)
        return [Document(number, shard, url) for number, (url, shard) in enumerate(pairs)]

    def done(self) -> set[int]:
        """Return the numbers of the shards that are finished."""
        try:
            names = self._system.ls(self._path("done"), detail=False)
        except FileNotFoundError:
            return set()
        return {int(name[1]) for path in names if (name := re.search(r"/(\d+)\.json$", path))}

    def summary(self) -> Shard:
        """Return the summary of all finished shards."""
        shards = [Shard(**json.loads(self._read(f"done/{number:05}.json"))) for number in sorted(self.done())]
        return Shard(
            documents=sum(shard.documents for shard in shards),
            pages=sum(shard.pages for shard in shards),
            failed=[failure for shard in shards for failure in shard.failed],
        )

    def keep(self, number: int, documents: Mapping[int, Sequence[CorpusPage]], form: Format) -> Shard:
        """Write a finished shard, and return its summary.

        Args:
            number: number of the shard.
            documents: the pages of each document in order, by the number of the document.
            form: format of the output.
        """
        pages = [page for _, each in sorted(documents.items()) for page in each]
        if form == "parquet":
            table = pa.Table.from_pylist([asdict(page) for page in pages], schema=SCHEMA)
            self._write(f"pages/{number:05}.parquet", _parquet(table))
        else:
            for place, each in sorted(documents.items()):
                name = f"documents/{number:05}/{place:07}-{_stem(each[0].url)}"
                self._write(f"{name}.md", "\n\n".join(page.markdown for page in each).encode())
                self._write(f"{name}.json", _json(each))
        shard = Shard(
            documents=len(documents),
            pages=sum(page.page > 0 for page in pages),
            failed=[
                {"url": page.url, "page": page.page, "error": page.error} for page in pages if page.error is not None
            ],
        )
        self._write(f"done/{number:05}.json", json.dumps(shard._asdict(), ensure_ascii=False).encode())
        return shard

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _read(self, name: str) -> bytes:
        with self._system.open(self._path(name), "rb") as file:
            return bytes(file.read())

    def _write(self, name: str, data: bytes) -> None:
        """Write a file atomically. Object stores do this themselves; local files are written and then renamed."""
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if "file" in self._system.protocol:
            self._system.pipe_file(f"{path}.part", data)
            self._system.mv(f"{path}.part", path)
        else:
            self._system.pipe_file(path, data)


@dataclass
class _PartialDocument:
    """A document whose pages have arrived in part."""

    pages: dict[int, CorpusPage] = field(default_factory=dict)
    complete: bool = False


class Collector:
    """Assembles pages, which arrive in any order, into documents and shards."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Args:
        documents: all documents of the shards that are being read.
        """
        self._shards: dict[int, dict[int, _PartialDocument]] = {}
        for document in documents:
            self._shards.setdefault(document.shard, {})[document.number] = _PartialDocument()
        self._left = {shard: len(each) for shard, each in self._shards.items()}

    def add(self, shard: int, number: int, page: CorpusPage) -> dict[int, list[CorpusPage]] | None:
        """Add a page.

        Args:
            shard: number of the shard.
            number: number of the document in the corpus.
            page: the page.

        Returns:
            If this page completes the shard, the pages of each of its documents in order, by the number of the
            document; otherwise None.
        """
        document = self._shards[shard][number]
        document.pages[page.page] = page
        if not document.complete and len(document.pages) >= page.page_count:
            document.complete = True
            self._left[shard] -= 1
        if self._left[shard]:
            return None
        documents = self._shards.pop(shard)
        return {number: [each.pages[place] for place in sorted(each.pages)] for number, each in documents.items()}


SCHEMA = pa.schema(
    [
        pa.field(name, {"str": pa.string(), "int": pa.int64(), "str | None": pa.string()}[str(kind)])
        for name, kind in CorpusPage.__annotations__.items()
    ]
)
"""Schema of `pages/*.parquet`."""


def find(source: str, *, column: str = "url", suffixes: Iterable[str]) -> list[str]:
    """Return the paths or URLs of the documents below a folder, or in a column of parquet files.

    Args:
        source: path or URL of a folder, or of parquet files if it ends in `.parquet`. `*` matches any part of a name.
        column: column of the parquet files that contains paths or URLs.
        suffixes: suffixes of the files to read in a folder, without the dot.

    Raises:
        CorpusError: if the folder, file or column does not exist.
    """
    system, path = fsspec.core.url_to_fs(source)
    if path.endswith(".parquet"):
        files = system.glob(path) if "*" in path else [path]
        return [url for file in files for url in _column(system, file, column)]
    if not system.isdir(path):
        raise CorpusError(f"There is no folder {source}.")
    wanted = {f".{suffix}" for suffix in suffixes}
    found = [name for name in system.find(path) if PurePosixPath(name).suffix.lower() in wanted]
    return [system.unstrip_protocol(name) for name in found]


def _column(system: fsspec.AbstractFileSystem, file: str, column: str) -> list[str]:
    try:
        with system.open(file, "rb") as data:
            values = pq.read_table(data, columns=[column])[column].to_pylist()
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise CorpusError(f"{file} cannot be read, or has no column {column}: {error}") from error
    return [str(value) for value in values if value is not None]


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _json(pages: Sequence[CorpusPage]) -> bytes:
    data = {
        "url": pages[0].url,
        "pages": [asdict(page) | {"blocks": json.loads(page.blocks)} for page in pages if page.page],
        "error": pages[0].error if pages[0].page == 0 else None,
    }
    return json.dumps(data, ensure_ascii=False).encode()


def _stem(url: str) -> str:
    """Return the last part of a URL in a form that is safe as a file name."""
    name = PurePosixPath(urlsplit(url).path).stem or "document"
    return re.sub(r"[^\w.-]+", "_", name)[:80]
