"""The command line of `deepseek-ocr`, with the commands read, serve and doctor."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import typer

from ocr_client import __version__
from ocr_client.client import DEFAULT_URL, OcrClient, ReadOptions
from ocr_client.machine import server_root
from ocr_client.output import JsonLinesOutput, MarkdownOutput, NoOutput, Output
from ocr_client.progress import print_error
from ocr_client.read import USAGE_ERROR, Run, RunOptions
from ocr_client.selection import PageSelection, parse_selection
from ocr_client.sources import SourceError, SourceFile, find_sources

COMMAND = "deepseek-ocr"
URL_VARIABLES = ["DEEPSEEK_OCR_BASE_URL", "OPENAI_BASE_URL"]

app = typer.Typer(
    name=COMMAND,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"{COMMAND} {__version__}")
        raise typer.Exit


def _parse_pages(text: str) -> PageSelection:
    try:
        return parse_selection(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _parse_url(text: str) -> str:
    """Return the base URL, with `/v1` appended if it has no path."""
    url = urlsplit(text.strip())
    if url.scheme not in ("http", "https") or not url.hostname:
        raise typer.BadParameter(f"{text!r} is not a valid http(s) URL, such as {DEFAULT_URL}")
    path = url.path.rstrip("/") or "/v1"
    return f"{url.scheme}://{url.netloc}{path}"


@app.callback()
def command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Read PDFs and images of documents with DeepSeek-OCR."""


@app.command(
    epilog="""[bold]Examples[/bold]

deepseek-ocr read scans/ -o texts/

deepseek-ocr read report.pdf --pages 1-3,7 --overlays -o texts/

deepseek-ocr read 'invoices/**/*.pdf' --prompt "Free OCR." --json > pages.jsonl

curl -s https://example.org/a.pdf | deepseek-ocr read - > a.md

[bold]Exit codes[/bold]

0 success · 1 something failed · 2 invalid usage or API key · 3 no server · 130 interrupted
"""
)
def read(
    context: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES…",
            help="PDFs, images, folders (searched recursively), or quoted patterns; - stands for standard input.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT",
            file_okay=False,
            help="Output folder, with one folder for each document. Without it, the markdown of a single document is "
            "written to standard output.",
            rich_help_panel="Results",
        ),
    ] = None,
    overlays: Annotated[
        bool,
        typer.Option(
            "--overlays",
            help="Also save the pages with their blocks drawn on them. The server reads the pages a second time for "
            "this.",
            rich_help_panel="Results",
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print one line of JSON for each finished page and each finished document.",
            rich_help_panel="Results",
        ),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Prompt for each page, such as 'Free OCR.'. By default, the server's prompt.",
            rich_help_panel="Reading",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="Resolution mode, such as base or gundam; the server lists its modes. By default, the server's mode.",
            rich_help_panel="Reading",
        ),
    ] = None,
    pages: Annotated[
        PageSelection | None,
        typer.Option(
            parser=_parse_pages,
            metavar="PAGES",
            help="Pages to read, counted from 1, such as 1-3,7,9-. By default, all pages.",
            rich_help_panel="Reading",
        ),
    ] = None,
    dpi: Annotated[
        int | None,
        typer.Option(
            min=36,
            max=600,
            help="Resolution at which PDF pages are rendered. By default, 144.",
            rich_help_panel="Reading",
        ),
    ] = None,
    password: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSEEK_OCR_PASSWORD",
            help="Password of encrypted PDFs. Prefer the environment variable: other users of this machine can see "
            "flags.",
            rich_help_panel="Reading",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Retry what could not be read in an earlier run.", rich_help_panel="Reading"
        ),
    ] = False,
    base_url: Annotated[
        str,
        typer.Option(
            envvar=URL_VARIABLES, callback=_parse_url, help="Base URL of the server.", rich_help_panel="Server"
        ),
    ] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSEEK_OCR_API_KEY",
            help="API key, if the server requires one. OPENAI_API_KEY is used only together with OPENAI_BASE_URL.",
            rich_help_panel="Server",
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1,
            max=1000,
            help="Number of documents to send at a time. The server also reads the pages of each document in parallel.",
            rich_help_panel="Server",
        ),
    ] = 16,
    patience: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds to wait for a server that becomes full or unreachable during the run, before giving up.",
            rich_help_panel="Server",
        ),
    ] = 600,
) -> None:
    """Convert PDFs and images to markdown.

    Each document gets a folder, such as OUT/report.pdf/. It contains
    [bold]document.md[/bold], its [bold]figures/[/bold], and a file for each page, such as
    [bold]pages/0001.json[/bold].

    Each page is saved as soon as it is finished: after an interruption, run
    the same command again, and only the missing pages are read. Saved pages
    are valid as long as the file, --prompt, --mode and --dpi stay the same.
    """
    folder = None if out is None else Path(os.path.abspath(out))
    try:
        sources = find_sources(files, folder)
        _check_output_folders(sources, folder)
    except SourceError as error:
        _fail(str(error))
    if folder is None and (overlays or (len(sources) > 1 and not json)):
        _fail("--overlays, and several documents without --json, require an output folder: -o OUT.")
    options = RunOptions(
        ReadOptions(
            prompt=prompt,
            mode=mode,
            dpi=dpi,
            password=password,
            figures=folder is not None,
        ),
        pages or PageSelection(),
        overlays=overlays,
        retry_failed=retry_failed,
    )
    if json:
        output: Output = JsonLinesOutput()
    else:
        output = MarkdownOutput() if folder is None else NoOutput()
    if api_key is None and _url_is_from_openai_variable(context):
        api_key = os.environ.get("OPENAI_API_KEY")

    async def run(results: Path) -> int:
        async with OcrClient(base_url, api_key, connections=concurrency + 1) as client:
            run = Run(client, results, options, patience=patience, output=output, resumable=folder is not None)
            return await run.read(sources, concurrency=concurrency)

    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix=COMMAND) as results:
        code = asyncio.run(run(Path(results)))
    _exit(code)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> None:
    """Start the server on this machine. --help lists the server's flags.

    All flags are passed to the server: deepseek-ocr serve --port 8080 --model /path/to/DeepSeek-OCR
    """
    root = server_root()
    if root is None:
        _fail("The server is not installed in this environment. Run ./start_server.sh in the project's folder.")
    os.execv(sys.executable, [sys.executable, str(root / "openai_api_server.py"), *context.args])


@app.command()
def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="Model to be served, as for the server's --model flag: a folder or a Hugging Face id."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the server.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Report what prevents the server from starting on this machine, and what to do about it.

    Checks Python, the installed packages, the GPU and its driver, the
    settings, the model, memory, disk space and the port, and whether a
    server is already running. Exits with 0 if there is no error, and
    otherwise with 1.
    """
    from ocr_client import doctor

    _exit(doctor.run(model=model, port=port, as_json=json))


def _check_output_folders(sources: list[SourceFile], out: Path | None) -> None:
    """Raise SourceError if a file exists where a folder for results would have to be created."""
    for source in sources if out is not None else []:
        assert out is not None
        for folder in (out / source.output_path, *(out / source.output_path).parents):
            if folder.is_file():
                raise SourceError(f"{folder} is a file, but it must be a folder. Choose another output folder (-o).")


def _url_is_from_openai_variable(context: typer.Context) -> bool:
    """Return whether the base URL comes from OPENAI_BASE_URL, so that OPENAI_API_KEY may be sent there."""
    source = context.get_parameter_source("base_url")
    return source is not None and source.name == "ENVIRONMENT" and not os.environ.get(URL_VARIABLES[0])


def _fail(message: str) -> NoReturn:
    print_error(message)
    raise typer.Exit(USAGE_ERROR)


def _exit(code: int) -> NoReturn:
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # otherwise Python reports the same error again when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(code)


def main() -> None:
    """Run the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal's encoding may lack some characters
    app(prog_name=COMMAND)
