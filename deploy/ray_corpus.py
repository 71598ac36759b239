"""Reads a corpus of documents on a Ray cluster. Pages are rendered on CPUs and read on GPUs, shard by shard.

    pip install -r deploy/requirements_ray.txt
    python deploy/ray_corpus.py s3://bucket/scans s3://bucket/text --model deepseek-ai/DeepSeek-OCR --readers 8
    python deploy/ray_corpus.py urls.parquet text/ --column url --format markdown

If the job is interrupted, starting it again resumes it. At most the shards that were being read are read again. Pages
and documents that cannot be read are recorded with the reason, in the output and in `done/`. See `deploy/corpus.py` for
the layout of the output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import fsspec
import numpy as np
import ray
import typer
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions
from tqdm import tqdm

if __name__ == "__main__":  # as a script, Python looks for modules in deploy/, not in the project's folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from deploy.corpus import Collector, Corpus, CorpusError, CorpusPage, Document, Format, find

if TYPE_CHECKING:
    from deepseek_ocr.families import Family
    from ocr_server.dialects.ocr.wire import OcrParameters
    from ocr_server.intake.document import Document as OpenDocument
    from ocr_server.intake.source import Content

Row = dict[str, Any]
"""A row of a data set. It contains no None, since Ray turns a column of nothing but None into NaN. No error is ""."""

BATCH = 16
"""Number of pages in a batch, which a reader gets at a time."""
BATCHES_AT_ONCE = 4
"""Number of concurrent batches of a reader, so that it reads the next pages while it finishes a batch."""
MAX_TRIES = 5
"""Maximum number of attempts at a page if the engine crashes. After that, the page fails."""
WAIT_S = 2.0
"""Time between two attempts, and between two checks whether there is an engine."""


class DocumentOpener:
    """An actor that renders the pages of documents on one CPU."""

    def __init__(self, settings: Row, options: Row) -> None:
        """Args:
        settings: Settings, as in `config.Settings`.
        options: Options of `POST /v1/ocr`.
        """
        from config import Settings
        from ocr_server.event_loop_thread import EventLoopThread
        from ocr_server.memory import MemoryBudget
        from ocr_server.runtime import build_intake

        self._settings = chosen = Settings(**{"DECODE_WORKERS": 1, **settings})
        self._parameters = checked(options, chosen)
        self._loop = EventLoopThread("open")
        self._intake = self._loop.run(_call(lambda: build_intake(chosen, MemoryBudget(chosen.memory_budget_bytes))))

    def __call__(self, row: Row) -> Iterator[Row]:
        """Yield a row for each page of a document, or a single row with the error if it cannot be opened."""
        pages = self._pages(row)
        try:
            while (page := self._loop.run(anext(pages, None))) is not None:
                yield page
        finally:
            self._loop.run(pages.aclose())

    async def _pages(self, row: Row) -> AsyncGenerator[Row]:
        from ocr_server.errors import ReadError

        nothing = {"page": 0, "page_count": 0, "height": 0, "width": 0, "pixels": b"", "error": ""}
        try:
            document = await self._open(row["url"])
        except (ReadError, OSError) as error:
            yield row | nothing | {"error": reason(error)}
            return
        try:
            for number, index in enumerate(document.indices):
                place = {"page": index + 1, "page_count": document.page_count}
                try:
                    page = await document.page(number)
                except ReadError as error:
                    yield row | nothing | place | {"error": reason(error)}
                    continue
                height, width, _ = page.pixels.shape
                pixels = {"height": height, "width": width, "pixels": page.pixels.tobytes()}
                page.close()
                yield row | nothing | place | pixels
        finally:
            await document.close()

    async def _open(self, url: str) -> OpenDocument:
        from ocr_server.dialects.ocr.plan import plan_ocr
        from ocr_server.intake.source import Url

        is_web = url.startswith(("http://", "https://"))
        content: Content = Url(url) if is_web else await asyncio.to_thread(_content, url)
        (planned,) = plan_ocr(self._parameters, self._settings, content).sources
        opened: list[OpenDocument] = await self._intake.open([planned.source])
        return opened[0]


class PageReader:
    """An actor that reads pages with an engine on its own GPUs."""

    def __init__(self, settings: Row, options: Row) -> None:
        """Args:
        settings: Settings, as in `config.Settings`.
        options: Options of `POST /v1/ocr`.
        """
        from config import Settings
        from ocr_server.engine.build import prepare_process
        from ocr_server.event_loop_thread import EventLoopThread

        self._settings = Settings(**settings)
        prepare_process(self._settings)
        self._parameters = checked(options, self._settings)
        self._loop = EventLoopThread("read")
        self._loop.run(self._load())

    async def _load(self) -> None:
        from ocr_server.engine.build import dedicated_engine
        from ocr_server.runtime import Runtime

        self._engine = dedicated_engine(self._settings)
        await self._engine.loaded()
        self._runtime = Runtime.build(self._settings, self._engine)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Read pages, and return the results without the pixels."""
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        done = self._loop.run(self._all(rows))
        return {name: [row[name] for row in done] for name in done[0]}

    async def _all(self, rows: list[Row]) -> list[Row]:
        return await asyncio.gather(*map(self._one, rows))

    async def _one(self, row: Row) -> Row:
        from ocr_server.errors import ReadError

        said = CorpusPage(str(row["url"]), int(row["page"]), int(row["page_count"]), error=row["error"] or None)
        if said.error is None:
            try:
                said = await self._read(row, said)
            except ReadError as error:
                said = CorpusPage(said.url, said.page, said.page_count, error=reason(error))
        return {"shard": int(row["shard"]), "number": int(row["number"]), **vars(said), "error": said.error or ""}

    async def _read(self, row: Row, page: CorpusPage) -> CorpusPage:
        """Raises ReadError: the page cannot be read."""
        from ocr_server.errors import Unavailable
        from ocr_server.reading.page import PageReading

        pixels = np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], 3)
        for attempt in range(MAX_TRIES):
            await self._wait_for_engine()
            try:
                async with aclosing(self._events(pixels)) as events:
                    async for event in events:
                        if isinstance(event, PageReading):
                            return filled(page, event, self._settings.family)
            except Unavailable:
                if attempt == MAX_TRIES - 1:
                    raise
                await asyncio.sleep(WAIT_S)
        raise AssertionError("every page ends with a result or an error")

    async def _wait_for_engine(self) -> None:
        """Wait until there is an engine.

        Raises:
            RuntimeError: The engine cannot be restarted. Ray then replaces this actor.
        """
        gave_up = asyncio.ensure_future(self._engine.given_up())
        try:
            while self._engine.unavailable():
                done, _ = await asyncio.wait({gave_up}, timeout=WAIT_S)
                if done:
                    raise RuntimeError("the engine has crashed too often")
        finally:
            gave_up.cancel()

    async def _events(self, pixels: Any) -> AsyncGenerator[Any]:
        from ocr_server.dialects.ocr.plan import plan_ocr
        from ocr_server.intake.document import LoadedPage
        from ocr_server.intake.source_page import SourcePage
        from ocr_server.session import Caller

        plan = plan_ocr(self._parameters, self._settings, LoadedPage(SourcePage(pixels, None)))
        session = await self._runtime.begin(plan, Caller())
        async with aclosing(session.events()) as events:
            async for event in events:
                yield event


def filled(page: CorpusPage, reading: Any, family: Family) -> CorpusPage:
    """Return the page with the results of a reading."""
    from ocr_server.output.artifacts import artifacts_of
    from ocr_server.output.markdown import to_markdown

    answer, artifacts = reading.text(), artifacts_of(reading)
    return CorpusPage(
        page.url,
        page.page,
        page.page_count,
        markdown=to_markdown(answer, family=family),
        answer=answer,
        blocks=json.dumps([asdict(block) for block in artifacts.blocks], ensure_ascii=False),
        width=reading.width,
        height=reading.height,
        finish_reason=reading.finish_reason() or "error",
        prompt_tokens=reading.prompt_tokens,
        completion_tokens=reading.completion_tokens,
    )


def checked(options: Row, settings: Any) -> OcrParameters:
    """Parse and check the options of `POST /v1/ocr`. Raises ApiError or ValidationError."""
    from ocr_server.dialects.ocr.plan import plan_ocr
    from ocr_server.dialects.ocr.wire import OcrParameters

    parameters = OcrParameters.model_validate(options)
    plan_ocr(parameters, settings, b"")  # only checks the plan: the file is not read
    return parameters


def reason(error: Exception) -> str:
    """Return the message of an exception, or its type if it has no message."""
    return str(getattr(error, "message", error)) or type(error).__name__


def _content(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


async def _call(function: Any) -> Any:
    """Call a function in the event loop of the thread that runs this coroutine."""
    return function()


def pipeline(
    documents: list[Document],
    settings: Row,
    options: Row,
    *,
    readers: tuple[int, int],
    openers: int,
    gpus: float,
    cpus: float,
) -> Dataset:
    """Build the data set of the results of all pages, in any order. Ray slows down rendering if reading is slower.

    Args:
        documents: The documents to read.
        settings: Settings, as in `config.Settings`.
        options: Options of `POST /v1/ocr`.
        readers: Minimum and maximum number of engines.
        openers: Maximum number of actors that render pages.
        gpus: Number of GPUs of each reader.
        cpus: Number of CPUs of each reader.
    """
    given = (settings, options)
    return (
        ray.data.from_items([document._asdict() for document in documents])
        .repartition(max(1, min(len(documents), 4 * openers)))
        .flat_map(
            DocumentOpener,
            fn_constructor_args=given,
            compute=ActorPoolStrategy(min_size=1, max_size=openers),
            num_cpus=1,
        )
        .map_batches(
            PageReader,
            fn_constructor_args=given,
            compute=ActorPoolStrategy(
                min_size=readers[0],
                max_size=readers[1],
                max_concurrent_calls_per_actor=BATCHES_AT_ONCE,
                max_tasks_in_flight_per_actor=BATCHES_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            batch_size=BATCH,
            num_gpus=gpus,
            num_cpus=cpus,
        )
    )


def main(
    source: Annotated[str, typer.Argument(help="Folder of PDFs and pictures, or parquet files with their URLs.")],
    out: Annotated[str, typer.Argument(help="Output folder. If it contains a job, the job is resumed.")],
    column: Annotated[str, typer.Option(help="Column of the parquet files that contains the URLs.")] = "url",
    form: Annotated[str, typer.Option("--format", help="Output format: parquet or markdown.")] = "parquet",
    shard: Annotated[int, typer.Option(min=1, help="Documents in a shard. An interrupted shard is read again.")] = 256,
    readers: Annotated[int, typer.Option(min=1, help="Maximum number of engines.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each engine. 0 means none.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of each engine, for resizing.")] = 2,
    openers: Annotated[int, typer.Option(min=1, help="Maximum number of processes that render pages.")] = 8,
    model: Annotated[str, typer.Option(help="Folder or Hugging Face id. Default: as in config.py.")] = "",
    prompt: Annotated[str, typer.Option(help="Prompt for each page. Default: as in config.py.")] = "",
    mode: Annotated[str, typer.Option(help="tiny, small, base, large, gundam or gundam-m.")] = "",
    dpi: Annotated[int, typer.Option(min=36, max=600, help="Resolution at which PDFs are rendered.")] = 144,
    setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as in config.py. Can be repeated.")] = None,
    address: Annotated[str, typer.Option(help="Address of the cluster. Default: RAY_ADDRESS, or this machine.")] = "",
) -> None:
    """Read a corpus of documents."""
    from ocr_server.library import SUFFIXES

    if form not in ("parquet", "markdown"):
        raise typer.BadParameter("must be parquet or markdown", param_hint="--format")
    if invalid := [each for each in setting or () if "=" not in each]:
        raise typer.BadParameter(f"must be NAME=VALUE, not {invalid[0]}", param_hint="--setting")
    settings: Row = dict(each.split("=", 1) for each in setting or ()) | ({"MODEL_PATH": model} if model else {})
    options: Row = {"dpi": dpi} | {name: value for name, value in (("prompt", prompt), ("mode", mode)) if value}
    _check(settings, options)
    corpus = Corpus(out)
    try:
        resumed = corpus.begin(
            lambda: find(source, column=column, suffixes=SUFFIXES),
            shard_size=shard,
            job={"source": source, "format": form, "settings": settings, "options": options},
        )
    except CorpusError as error:
        raise typer.BadParameter(str(error)) from error
    done = corpus.done()
    documents = [document for document in corpus.documents() if document.shard not in done]
    if resumed:
        print(f"Resuming: {len(done)} shards are finished, {len(documents)} documents are left.")
    if documents:
        ray.init(address=address or None, runtime_env={"env_vars": _environment()})
        dataset = pipeline(documents, settings, options, readers=(1, readers), openers=openers, gpus=gpus, cpus=cpus)
        collect(corpus, documents, dataset, "markdown" if form == "markdown" else "parquet")
    total = corpus.summary()
    print(f"{total.documents} documents, {total.pages} pages; {len(total.failed)} pages or documents failed.")


def collect(corpus: Corpus, documents: list[Document], dataset: Dataset, form: Format) -> None:
    """Write each shard when its last page has arrived."""
    context = dataset.context
    context.enable_progress_bars = False
    context.execution_options = ExecutionOptions(preserve_order=False)
    collector = Collector(documents)
    with tqdm(unit="page", smoothing=0.05) as bar:
        for row in dataset.iter_rows():
            shard, number = row.pop("shard"), row.pop("number")
            whole = collector.add(shard, number, CorpusPage(**row | {"error": row["error"] or None}))
            bar.update()
            if whole is not None:
                corpus.keep(shard, whole, form)
                bar.set_postfix_str(f"shard {shard} done")


def _environment() -> dict[str, str]:
    """Return the environment of processes on the cluster. config.py and deploy/ are not installed packages."""
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def _check(settings: Row, options: Row) -> None:
    """Check the options before anything is started. Raises BadParameter."""
    from config import Settings
    from ocr_server.errors import ApiError

    try:
        checked(options, Settings(**settings))
    except (ApiError, ValueError) as error:
        raise typer.BadParameter(reason(error)) from error


if __name__ == "__main__":
    typer.run(main)
