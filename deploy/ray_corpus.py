"""Read a corpus of documents on a Ray cluster: pages are rendered on CPUs and read on GPUs, shard after shard.

    pip install -r deploy/requirements_ray.txt
    python deploy/ray_corpus.py s3://bucket/scans s3://bucket/text --model deepseek-ai/DeepSeek-OCR --readers 8
    python deploy/ray_corpus.py urls.parquet text/ --column url --format markdown

Killed and started again, it goes on: at most the shards that were being read are read twice. What can't be read is set
aside with its reason, in the output and in `done/`. `deploy/corpus.py` has the layout of the output.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncGenerator, Iterator
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
    from ocr_server.dialects.ocr.wire import OcrParameters
    from ocr_server.intake.document import Document as OpenDocument
    from ocr_server.intake.source import Content

Row = dict[str, Any]
"""Without None: a column of nothing else would come out of Ray as NaN. No error is an empty one."""

BATCH = 16
"""Pages that a reader is given at a time."""
BATCHES_AT_ONCE = 4
"""So that the next pages are being read while the last of a batch are."""
TRIES = 5
"""Of a page under which the engine dies, and is refused after that."""
WAIT_S = 2.0


class OpensDocuments:
    """Renders the pages of documents; one actor for each CPU that is lent to it."""

    def __init__(self, settings: Row, options: Row) -> None:
        """Args:
        settings: as in `config.Settings`.
        options: of `POST /v1/ocr`.
        """
        from config import Settings
        from ocr_server.event_loop_thread import EventLoopThread
        from ocr_server.runtime import build_intake

        self._settings = chosen = Settings(**{"DECODE_WORKERS": 1, **settings})
        self._parameters = checked(options, chosen)
        self._loop = EventLoopThread("open")
        self._intake = self._loop.run(_made(lambda: build_intake(chosen)))

    def __call__(self, row: Row) -> Iterator[Row]:
        """A document → its pages, one at a time; of one that can't be opened, one row with the error."""
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


class ReadsPages:
    """An engine on its own GPUs."""

    def __init__(self, settings: Row, options: Row) -> None:
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
        """Pages → what they say, without their pixels."""
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
        for attempt in range(TRIES):
            await self._engine_there()
            try:
                async for event in self._events(pixels):
                    if isinstance(event, PageReading):
                        return filled(page, event)
            except Unavailable:
                if attempt == TRIES - 1:
                    raise
                await asyncio.sleep(WAIT_S)
        raise AssertionError("a page ends with a reading or an error")

    async def _engine_there(self) -> None:
        """Raises RuntimeError, so that Ray builds another actor, if there is no engine and will be none."""
        gave_up = asyncio.ensure_future(self._engine.given_up())
        try:
            while self._engine.unavailable():
                done, _ = await asyncio.wait({gave_up}, timeout=WAIT_S)
                if done:
                    raise RuntimeError("the engine has died too often")
        finally:
            gave_up.cancel()

    async def _events(self, pixels: Any) -> AsyncGenerator[Any]:
        from ocr_server.dialects.ocr.plan import plan_ocr
        from ocr_server.intake.document import LoadedPage
        from ocr_server.intake.source_page import SourcePage
        from ocr_server.session import Caller

        plan = plan_ocr(self._parameters, self._settings, LoadedPage(SourcePage(pixels, None)))
        session = await self._runtime.begin(plan, Caller())
        async for event in session.events():
            yield event


def filled(page: CorpusPage, reading: Any) -> CorpusPage:
    """With what was read."""
    from ocr_server.output.artifacts import artifacts_of
    from ocr_server.output.markdown import to_markdown

    answer, artifacts = reading.text(), artifacts_of(reading)
    return CorpusPage(
        page.url,
        page.page,
        page.page_count,
        markdown=to_markdown(answer, figures=["" for _ in artifacts.figures]),
        answer=answer,
        blocks=json.dumps([asdict(block) for block in artifacts.blocks], ensure_ascii=False),
        width=reading.width,
        height=reading.height,
        finish_reason=reading.finish_reason() or "error",
        prompt_tokens=reading.prompt_tokens,
        completion_tokens=reading.completion_tokens,
    )


def checked(options: Row, settings: Any) -> OcrParameters:
    """The options of `POST /v1/ocr`. Raises ApiError or ValidationError: they are not valid."""
    from ocr_server.dialects.ocr.plan import plan_ocr
    from ocr_server.dialects.ocr.wire import OcrParameters

    parameters = OcrParameters.model_validate(options)
    plan_ocr(parameters, settings, b"")  # the plan is only checked: no file is read for it
    return parameters


def reason(error: Exception) -> str:
    return str(getattr(error, "message", error)) or type(error).__name__


def _content(url: str) -> bytes:
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


async def _made(make: Any) -> Any:
    return make()


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
    """Documents → what their pages say, in any order. Ray holds back what is rendered when the readers don't keep up.

    Args:
        readers: fewest and most engines.
        openers: most actors that render.
        gpus: of each reader.
        cpus: of each reader.
    """
    given = (settings, options)
    return (
        ray.data.from_items([document._asdict() for document in documents])
        .repartition(max(1, min(len(documents), 4 * openers)))
        .flat_map(
            OpensDocuments,
            fn_constructor_args=given,
            compute=ActorPoolStrategy(min_size=1, max_size=openers),
            num_cpus=1,
        )
        .map_batches(
            ReadsPages,
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
    source: Annotated[str, typer.Argument(help="Folder of PDFs and pictures, or parquet files of their URLs.")],
    out: Annotated[str, typer.Argument(help="Folder for what is read; a job found there is gone on with.")],
    column: Annotated[str, typer.Option(help="Column of the parquet files that has the URLs.")] = "url",
    form: Annotated[str, typer.Option("--format", help="parquet or markdown.")] = "parquet",
    shard: Annotated[int, typer.Option(min=1, help="Documents in a shard: what a kill costs at most.")] = 256,
    readers: Annotated[int, typer.Option(min=1, help="Most engines at a time.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each engine; 0 without.")] = 1,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of each engine, for resizing.")] = 2,
    openers: Annotated[int, typer.Option(min=1, help="Most processes that render pages.")] = 8,
    model: Annotated[str, typer.Option(help="Folder or hub name; else as in config.py.")] = "",
    prompt: Annotated[str, typer.Option(help="What is asked about each page; else as in config.py.")] = "",
    mode: Annotated[str, typer.Option(help="tiny, small, base, large, gundam, gundam-m.")] = "",
    dpi: Annotated[int, typer.Option(min=36, max=600, help="At which PDFs are rendered.")] = 144,
    setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, as in config.py; again for each.")] = None,
    address: Annotated[str, typer.Option(help="Of the cluster; else the one of RAY_ADDRESS, or this machine.")] = "",
) -> None:
    """Read a corpus of documents."""
    from ocr_server.library import SUFFIXES

    if form not in ("parquet", "markdown"):
        raise typer.BadParameter("parquet or markdown", param_hint="--format")
    if strange := [each for each in setting or () if "=" not in each]:
        raise typer.BadParameter(f"NAME=VALUE, not {strange[0]}", param_hint="--setting")
    settings: Row = dict(each.split("=", 1) for each in setting or ()) | ({"MODEL_PATH": model} if model else {})
    options: Row = {"dpi": dpi} | {name: value for name, value in (("prompt", prompt), ("mode", mode)) if value}
    _check(settings, options)
    corpus = Corpus(out)
    try:
        goes_on = corpus.begin(
            lambda: find(source, column=column, suffixes=SUFFIXES),
            shard_size=shard,
            job={"source": source, "format": form, "settings": settings, "options": options},
        )
    except CorpusError as error:
        raise typer.BadParameter(str(error)) from error
    done = corpus.done()
    documents = [document for document in corpus.documents() if document.shard not in done]
    if goes_on:
        print(f"Going on: {len(done)} shards have been read; {len(documents)} documents are left.")
    if documents:
        ray.init(address=address or None, runtime_env={"env_vars": _environment()})
        dataset = pipeline(documents, settings, options, readers=(1, readers), openers=openers, gpus=gpus, cpus=cpus)
        collect(corpus, documents, dataset, "markdown" if form == "markdown" else "parquet")
    total = corpus.summary()
    print(f"{total.documents} documents, {total.pages} pages; {len(total.failed)} pages or documents set aside.")


def collect(corpus: Corpus, documents: list[Document], dataset: Dataset, form: Format) -> None:
    """Write each shard when its last page has come."""
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
    """What processes on the cluster need. config.py and deploy/ are not installed, but in the project's folder."""
    folders = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    return {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(filter(None, folders))}


def _check(settings: Row, options: Row) -> None:
    """Raises BadParameter before anything is started."""
    from config import Settings
    from ocr_server.errors import ApiError

    try:
        checked(options, Settings(**settings))
    except (ApiError, ValueError) as error:
        raise typer.BadParameter(reason(error)) from error


if __name__ == "__main__":
    typer.run(main)
