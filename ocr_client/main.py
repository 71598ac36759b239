"""The command `deepseek-ocr`: read, serve, doctor."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
from contextlib import nullcontext
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import typer

from ocr_client import __version__, progress
from ocr_client.lines import JsonLines, Lines, Markdown, Silent
from ocr_client.read import USAGE, Run, Wanted
from ocr_client.selection import Selection, parse
from ocr_client.server import DEFAULT_URL, ReadOptions, Server
from ocr_client.sources import Source, SourceError, find

COMMAND = "deepseek-ocr"
URL_VARIABLES = ["DEEPSEEK_OCR_BASE_URL", "OPENAI_BASE_URL"]

app = typer.Typer(
    name=COMMAND,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Mode(StrEnum):
    """The model's resolution modes."""

    TINY = "tiny"
    SMALL = "small"
    BASE = "base"
    LARGE = "large"
    GUNDAM = "gundam"
    GUNDAM_M = "gundam-m"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{COMMAND} {__version__}")
        raise typer.Exit


def _pages(text: str) -> Selection:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _url(text: str) -> str:
    """With `/v1` if it names a host alone."""
    url = urlsplit(text.strip())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise typer.BadParameter(f"{text!r} is no http address, such as {DEFAULT_URL}")
    path = url.path.rstrip("/") or "/v1"
    return f"{url.scheme}://{url.netloc}{path}"


@app.callback()
def command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Read PDFs and pictures of documents with DeepSeek-OCR."""


@app.command(
    epilog="""[bold]Examples[/bold]

deepseek-ocr read scans/ -o texts/

deepseek-ocr read report.pdf --pages 1-3,7 --overlays -o texts/

deepseek-ocr read 'invoices/**/*.pdf' --prompt "Free OCR." --json > pages.jsonl

curl -s https://example.org/a.pdf | deepseek-ocr read - > a.md

[bold]Exit codes[/bold]

0 all read · 1 something failed · 2 wrong usage or API key · 3 no server · 130 interrupted
"""
)
def read(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES…",
            help="PDFs, pictures, folders with such (and all folders below them), or patterns in quotes; - is "
            "standard input.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            file_okay=False,
            help="Folder for the results, one folder for each document. Without it, the markdown of a single document "
            "goes to standard output.",
            rich_help_panel="Results",
        ),
    ] = None,
    overlays: Annotated[
        bool,
        typer.Option(
            "--overlays",
            help="Also the pages with their blocks drawn on them. The server reads the pages once more for it.",
            rich_help_panel="Results",
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one line of JSON for each page and each document that is done.",
            rich_help_panel="Results",
        ),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What to ask about each page, such as 'Free OCR.'; the server's own prompt if not given.",
            rich_help_panel="Reading",
        ),
    ] = None,
    mode: Annotated[
        Mode | None, typer.Option(help="Resolution mode; the server's own if not given.", rich_help_panel="Reading")
    ] = None,
    pages: Annotated[
        Selection | None,
        typer.Option(
            parser=_pages,
            metavar="PAGES",
            help="Pages to read, as 1-3,7,9-; all if not given.",
            rich_help_panel="Reading",
        ),
    ] = None,
    dpi: Annotated[
        int | None,
        typer.Option(min=36, max=600, help="Resolution of PDF pages; 144 if not given.", rich_help_panel="Reading"),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSEEK_OCR_PASSWORD",
            help="Opens encrypted PDFs. Other users of this machine can see a flag: the variable keeps it secret.",
            rich_help_panel="Reading",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Try again what could not be read in an earlier run.", rich_help_panel="Reading"
        ),
    ] = False,
    base_url: Annotated[
        str,
        typer.Option(envvar=URL_VARIABLES, callback=_url, help="Where the server is.", rich_help_panel="Server"),
    ] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSEEK_OCR_API_KEY",
            help="If the server wants one. OPENAI_API_KEY is used only with OPENAI_BASE_URL.",
            rich_help_panel="Server",
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Documents to have read at a time; the server reads the pages of each at a time, too.",
            rich_help_panel="Server",
        ),
    ] = 16,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait for a server that is full or away once it has answered, before giving up.",
            rich_help_panel="Server",
        ),
    ] = 600,
) -> None:
    """Read PDFs and pictures into markdown.

    OUT/report.pdf/ gets [bold]document.md[/bold] with its [bold]figures/[/bold],
    and [bold]pages/0001.json[/bold] for each page.

    Pages are kept as they come: run the same command again after an
    interruption, and only what is missing is read. What is done counts
    as long as the file, --prompt, --mode and --dpi are the same.
    """
    folder = None if out is None else Path(os.path.abspath(out))
    try:
        sources = find(files, folder)
        _check_places(sources, folder)
    except SourceError as error:
        _fail(str(error))
    if folder is None and (overlays or (len(sources) > 1 and not json)):
        _fail("Overlays and several documents need a folder for the results: -o OUT.")
    wanted = Wanted(
        ReadOptions(
            prompt=prompt,
            mode=None if mode is None else mode.value,
            dpi=dpi,
            password=password,
            figures=folder is not None,
        ),
        pages or Selection(),
        overlays=overlays,
        retry_failed=retry_failed,
    )
    if json:
        lines: Lines = JsonLines()
    else:
        lines = Markdown() if folder is None else Silent()
    if api_key is None and _names_openais_variable(context):
        api_key = os.environ.get("OPENAI_API_KEY")

    async def run(kept: Path) -> int:
        async with Server(base_url, api_key, connections=concurrency + 1) as server:
            run = Run(server, kept, wanted, patience=patience, lines=lines, resumable=folder is not None)
            return await run.read(sources, at_once=concurrency)

    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix=COMMAND) as kept:
        code = asyncio.run(run(Path(kept)))
    _leave(code)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Start the server here; --help shows its own flags.

    Every flag goes to the server: deepseek-ocr serve --port 8080 --model /path/to/DeepSeek-OCR
    """
    server = find_spec("openai_api_server")
    if server is None or server.origin is None:
        _fail("The server is not installed here: install it from its folder with ./start_server.sh.")
    os.execv(sys.executable, [sys.executable, server.origin, *context.args])


@app.command()
def doctor(
    model: Annotated[
        str | None, typer.Option(help="The model to serve: a folder or a Hugging Face id; as the server's own flag.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The port to serve on.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Say what keeps a server from starting here, and what to do about it.

    Looks at Python, the packages, the GPU and its driver, memory, disk, the model, the port, and a server that runs
    already. Exits with 0 if nothing is wrong, else with 1.
    """
    from ocr_client.doctor import examine

    _leave(examine(model=model, port=port, as_json=json))


def _check_places(sources: list[Source], out: Path | None) -> None:
    """Raises SourceError where a file stands in the way of a folder for results."""
    for source in sources if out is not None else []:
        assert out is not None
        for folder in (out / source.place, *(out / source.place).parents):
            if folder.is_file():
                raise SourceError(f"{folder} is a file, and would have to be a folder: choose another -o.")


def _names_openais_variable(context: typer.Context) -> bool:
    """Whether it is OPENAI_BASE_URL that says where the server is, and its key may go there."""
    source = context.get_parameter_source("base_url")
    return source is not None and source.name == "ENVIRONMENT" and not os.environ.get(URL_VARIABLES[0])


def _fail(message: str) -> NoReturn:
    progress.error(message)
    raise typer.Exit(USAGE)


def _leave(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(code)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know every sign
    app(prog_name=COMMAND)
