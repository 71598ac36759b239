"""A corpus job's folder: what is to be read, shard by shard, and what has been.

    job.json              how it is read; a job is gone on with in the same way only
    sources.parquet       every document, with the number of its shard
    pages/00012.parquet   one row for each page of a shard
    documents/…           or, instead, markdown and JSON for each document
    done/00012.json       the shard is there: how many documents and pages, and which of them failed, and why

A shard's last file is the one in `done`, so that one that was cut off is read again from its beginning.
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
    """The job can't be begun or gone on with; the message says why."""


class Document(NamedTuple):
    number: int
    """In the corpus, from 0."""
    shard: int
    url: str


@dataclass(frozen=True)
class CorpusPage:
    """A page that has been read, or that could not be; of a document that can't be opened, page 0 of 0."""

    url: str
    page: int
    """From 1."""
    page_count: int
    markdown: str = ""
    answer: str = ""
    """Exactly what the model said."""
    blocks: str = "[]"
    """JSON: label, text, and boxes in pixels of the page."""
    width: int = 0
    height: int = 0
    finish_reason: str = "error"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None


class Shard(NamedTuple):
    """What is told of a shard that has been read."""

    documents: int
    pages: int
    failed: list[dict[str, Any]]
    """url, page, error."""


class Corpus:
    def __init__(self, folder: str) -> None:
        """Args:
        folder: a path, or a URL as fsspec writes it: `s3://bucket/prefix`.
        """
        self._system, self._root = fsspec.core.url_to_fs(folder)

    def begin(self, sources: Callable[[], Iterable[str]], *, shard_size: int, job: Mapping[str, Any]) -> bool:
        """Write down what is to be read, unless that has been done.

        Args:
            sources: finds the documents; not asked when a job is gone on with.
            shard_size: documents in a shard.
            job: how they are read.

        Returns:
            Whether there was a job to go on with.

        Raises:
            CorpusError: there are no documents, or the folder has a job that reads in another way.
        """
        job = {"shard_size": shard_size, **job}
        if self._system.exists(self._path("job.json")):
            known = json.loads(self._read("job.json"))
            if differences := sorted(name for name in known.keys() | job.keys() if known.get(name) != job.get(name)):
                raise CorpusError(
                    f"The folder has a job with another {', '.join(differences)}. Go on with it as it was begun, or "
                    "take another folder."
                )
            return True
        urls = sorted(set(sources()))
        if not urls:
            raise CorpusError("There is nothing to read.")
        table = pa.table({"url": urls, "shard": [number // shard_size for number in range(len(urls))]})
        self._write("sources.parquet", _parquet(table))
        self._write("job.json", json.dumps(job, indent=1).encode())
        return False

    def documents(self) -> list[Document]:
        """All of them."""
        table = pq.read_table(io.BytesIO(self._read("sources.parquet")))
        pairs = zip(table["url"].to_pylist(), table["shard"].to_pylist(), strict=True)
        return [Document(number, shard, url) for number, (url, shard) in enumerate(pairs)]

    def done(self) -> set[int]:
        """The shards that have been read."""
        try:
            names = self._system.ls(self._path("done"), detail=False)
        except FileNotFoundError:
            return set()
        return {int(name[1]) for path in names if (name := re.search(r"/(\d+)\.json$", path))}

    def summary(self) -> Shard:
        """Of all shards that have been read."""
        shards = [Shard(**json.loads(self._read(f"done/{number:05}.json"))) for number in sorted(self.done())]
        return Shard(
            documents=sum(shard.documents for shard in shards),
            pages=sum(shard.pages for shard in shards),
            failed=[failure for shard in shards for failure in shard.failed],
        )

    def keep(self, number: int, documents: Mapping[int, Sequence[CorpusPage]], form: Format) -> Shard:
        """Write a shard: the pages of each of its documents, in order."""
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
        """Whole or not at all: an object appears when it is complete, a file when it is renamed."""
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if "file" in self._system.protocol:
            self._system.pipe_file(f"{path}.part", data)
            self._system.mv(f"{path}.part", path)
        else:
            self._system.pipe_file(path, data)


@dataclass
class _Open:
    """A document of which some pages have come."""

    pages: dict[int, CorpusPage] = field(default_factory=dict)
    complete: bool = False


class Collector:
    """Puts pages, which come in any order, together to documents and shards."""

    def __init__(self, documents: Iterable[Document]) -> None:
        """Args:
        documents: all of the shards that are read.
        """
        self._shards: dict[int, dict[int, _Open]] = {}
        for document in documents:
            self._shards.setdefault(document.shard, {})[document.number] = _Open()
        self._left = {shard: len(each) for shard, each in self._shards.items()}

    def add(self, shard: int, number: int, page: CorpusPage) -> dict[int, list[CorpusPage]] | None:
        """The pages of all documents of the shard, by their numbers, if this was the last one."""
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
"""Of `pages/*.parquet`."""


def find(source: str, *, column: str = "url", suffixes: Iterable[str]) -> list[str]:
    """The documents in a folder and all below it, or those that a column of parquet files names.

    Args:
        source: a path or URL of a folder, or of parquet files if it ends in `.parquet`; `*` stands for any name.
        column: of the parquet files: paths or URLs.
        suffixes: of files in a folder, without the dot.

    Raises:
        CorpusError: there is no such folder, file or column.
    """
    system, path = fsspec.core.url_to_fs(source)
    if path.endswith(".parquet"):
        files = system.glob(path) if "*" in path else [path]
        return [url for file in files for url in _column(system, file, column)]
    if not system.isdir(path):
        raise CorpusError(f"{source} is no folder.")
    wanted = {f".{suffix}" for suffix in suffixes}
    found = [name for name in system.find(path) if PurePosixPath(name).suffix.lower() in wanted]
    return [system.unstrip_protocol(name) for name in found]


def _column(system: fsspec.AbstractFileSystem, file: str, column: str) -> list[str]:
    try:
        with system.open(file, "rb") as data:
            values = pq.read_table(data, columns=[column])[column].to_pylist()
    except (FileNotFoundError, KeyError, pa.ArrowInvalid) as error:
        raise CorpusError(f"{file} can't be read, or has no column {column}: {error}") from error
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
    """The last part of a URL, as a file's name."""
    name = PurePosixPath(urlsplit(url).path).stem or "document"
    return re.sub(r"[^\w.-]+", "_", name)[:80]
