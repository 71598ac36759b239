"""`deepseek-ocr read` with files and folders: the results, the output, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from ocr_server.errors import EngineFailure
from tests.ocr_client.conftest import Done, FakeServer, document, pages_of, run, start, write_image
from tests.ocr_server.intake.pdfs import encrypted

pytestmark = pytest.mark.slow

FIGURE = (
    "<|ref|>image<|/ref|><|det|>[[0, 0, 500, 500]]<|/det|>\n\n"
    "<|ref|>text<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>\nBelow it."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with `scans`: an image, a PDF of three pages in a subfolder, a broken file, and files to ignore."""
    (tmp_path / "scans" / "2020").mkdir(parents=True)
    write_image(tmp_path / "scans" / "photo.png")
    (tmp_path / "scans" / "2020" / "three.pdf").write_bytes(document(3))
    (tmp_path / "scans" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    (tmp_path / "scans" / "notes.txt").write_text("not a document")
    (tmp_path / "scans" / "._photo.png").write_bytes(b"hidden")
    return tmp_path


def test_a_folder_with_a_broken_file(server: FakeServer, folder: Path) -> None:
    done = run("read", "scans", "-o", "out", "--base-url", server.url, cwd=folder)
    assert done.code == 1, done.error
    assert done.out == ""
    out = folder / "out" / "scans"
    assert (out / "photo.png" / "document.md").read_text() == "page 39\n"
    three = (out / "2020" / "three.pdf" / "document.md").read_text()
    assert three == "\n\n<--- Page Split --->\n\n".join(["page 1", "page 2", "page 3"]) + "\n"
    assert not (out / "broken.jpg" / "document.md").exists()
    assert {file.name for file in out.iterdir()} == {"photo.png", "2020", "broken.jpg"}
    pages = pages_of(out / "2020" / "three.pdf")
    assert sorted(pages) == [1, 2, 3]
    assert (pages[2]["page"], pages[2]["markdown"], pages[2]["finish_reason"]) == (2, "page 2", "stop")
    assert pages[2]["blocks"][0]["content"] == "page 2"
    assert "failed: " in done.error
    assert "broken.jpg: " in done.error
    assert "4 pages read" in done.error
    assert "1 document failed" in done.error
    assert not list((folder / "out").rglob("*.part"))


def test_patterns(server: FakeServer, folder: Path) -> None:
    (folder / "scans" / "broken.jpg").unlink()
    done = run("read", "scans/*", "-o", "out", "--base-url", server.url, cwd=folder)
    assert done.code == 1
    assert "notes.txt" in done.error, "a file that a pattern matches by name is read whatever its suffix"
    done = run("read", "scans/**/*", "-o", "out", "--base-url", server.url, cwd=folder)
    assert done.code == 0, done.error
    assert "4 pages from an earlier run; 2 of 2 documents done" in done.error
    assert sum(server.asked.values()) == 4


def test_the_output_folder_does_not_depend_on_how_a_file_is_named(server: FakeServer, folder: Path) -> None:
    absolute = folder / "scans" / "2020" / "three.pdf"
    for names in (["scans/2020/three.pdf"], [absolute], ["scans/2020"], ["scans/2020/*.pdf", absolute]):
        done = run("read", *names, "-o", "out", "--base-url", server.url, cwd=folder)
        assert done.code == 0, done.error
    assert server.asked == {1: 1, 2: 1, 3: 1}


def test_results_of_an_earlier_run_are_not_read(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 5)
    server.answer = lambda _: FIGURE
    for out in ("first", "second"):
        done = run("read", ".", "-o", out, "--base-url", server.url, cwd=tmp_path)
        assert (done.code, server.asked[5]) == (0, 1 if out == "first" else 2), done.error
    assert "1 of 1 document done" in done.error
    assert "1 page read" in done.error


def test_figures_are_saved_and_linked(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    server.answer = lambda _: FIGURE
    assert run("read", "a.png", "-o", "out", "--base-url", server.url, cwd=tmp_path).code == 0
    folder = tmp_path / "out" / "a.png"
    name = "figures/page-1-figure-1.jpeg"
    assert f"]({name})" in (folder / "document.md").read_text()
    assert Image.open(folder / name).size == (32, 32)
    (image,) = pages_of(folder)[1]["images"]
    assert image["file"] == name
    assert "image_base64" not in image


def test_overlays(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "three.pdf").write_bytes(document(3))
    arguments = ("read", "a.png", "three.pdf", "-o", "out", "--overlays", "--base-url", server.url)
    assert run(*arguments, cwd=tmp_path).code == 0
    assert Image.open(tmp_path / "out" / "a.png" / "overlay.png").size == (64, 64)
    assert (tmp_path / "out" / "three.pdf" / "overlay.pdf").read_bytes().startswith(b"%PDF")
    before = dict(server.asked)
    assert run(*arguments, cwd=tmp_path).code == 0
    assert server.asked == before, "the overlays exist already"


def test_saved_pages_are_shared_between_selections(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "five.pdf").write_bytes(document(5))
    read = ("read", "five.pdf", "-o", "out", "--base-url", server.url)
    file = tmp_path / "out" / "five.pdf" / "document.md"
    assert run(*read, "--pages", "2,4-", cwd=tmp_path).code == 0
    assert file.read_text().split() == "page 2 <--- Page Split ---> page 4 <--- Page Split ---> page 5".split()
    assert server.asked == {2: 1, 4: 1, 5: 1}
    assert run(*read, cwd=tmp_path).code == 0
    assert server.asked == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    assert file.read_text().count("page ") == 5
    rejected = run(*read, "--pages", "9", cwd=tmp_path)
    assert rejected.code == 1
    assert "does not have all the pages" in rejected.error
    assert run(*read, cwd=tmp_path).code == 0, "an invalid selection does not mark the document as failed"


def test_options_reach_the_server(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(document(1))
    out = ("-o", "out", "--base-url", server.url)
    done = run("read", "a.pdf", "--prompt", "Free OCR.", "--dpi", "72", "--mode", "tiny", *out, cwd=tmp_path)
    assert done.code == 0, done.error
    (page,) = pages_of(tmp_path / "out" / "a.pdf").values()
    assert page["dimensions"] == {"dpi": 72, "height": 60, "width": 60}
    assert any("Free OCR." in prompt for prompt in server.prompts)


def test_an_unknown_mode_is_reported_before_anything_is_read(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    done = run("read", "a.png", "-o", "out", "--mode", "huge", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 2
    assert "The server has no mode 'huge'. It has tiny, small, base, large, gundam, gundam-m." in done.error
    assert not server.asked


def test_password(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "secret.pdf").write_bytes(encrypted(b"", "open sesame"))
    read = ("read", "secret.pdf", "-o", "out", "--base-url", server.url)
    assert "password" in run(*read, cwd=tmp_path).error
    done = run(*read, cwd=tmp_path, variables={"DEEPSEEK_OCR_PASSWORD": "open sesame"})
    assert done.code == 0, done.error
    assert "sesame" not in (tmp_path / "out" / "secret.pdf" / "deepseek-ocr.json").read_text()


def test_standard_input_to_standard_output(server: FakeServer, tmp_path: Path) -> None:
    done = run("read", "-", "--base-url", server.url, cwd=tmp_path, given=document(2))
    assert done.code == 0, done.error
    assert done.out == "page 1\n\n<--- Page Split --->\n\npage 2\n"
    assert list(tmp_path.iterdir()) == []


def test_standard_input_is_not_a_document(server: FakeServer, tmp_path: Path) -> None:
    done = run("read", "-", "--base-url", server.url, cwd=tmp_path, given=b"hello")
    assert (done.code, done.out) == (1, "")
    assert "failed: -: " in done.error


def test_json_lines(server: FakeServer, folder: Path) -> None:
    for from_before in (False, True):
        done = run("read", "scans", "-o", "out", "--json", "--base-url", server.url, cwd=folder)
        assert done.code == 1
        pages = [line for line in done.lines if line["type"] == "page"]
        assert sorted(page["markdown"] for page in pages) == ["page 1", "page 2", "page 3", "page 39"]
        assert all(page["from_before"] is from_before for page in pages)
        documents = {Path(line["source"]).name: line for line in done.lines if line["type"] == "document"}
        assert sorted(documents) == ["broken.jpg", "photo.png", "three.pdf"]
        assert documents["three.pdf"]["error"] is None
        assert documents["three.pdf"]["output"] == str(folder / "out" / "scans" / "2020" / "three.pdf")
        assert documents["broken.jpg"]["error"]


def test_json_lines_without_a_folder(server: FakeServer, folder: Path) -> None:
    done = run("read", "scans/photo.png", "scans/2020", "--json", "--base-url", server.url, cwd=folder)
    assert done.code == 0, done.error
    assert [line["output"] for line in done.lines if line["type"] == "document"] == [None, None]
    assert len([line for line in done.lines if line["type"] == "page"]) == 4


def test_a_page_that_fails(server: FakeServer, tmp_path: Path) -> None:
    """It is reported and remembered, and tried again only with --retry-failed."""
    (tmp_path / "a.pdf").write_bytes(document(3))
    broken = True

    def answer(number: int) -> str:
        if number == 2 and broken:
            raise EngineFailure("The engine crashed on this page.")
        return f"page {number}"

    server.answer = answer
    read = ("read", "a.pdf", "-o", "out", "--base-url", server.url)
    done = run(*read, cwd=tmp_path)
    assert done.code == 1
    assert "page 2 could not be read: The engine crashed on this page." in done.error
    text = (tmp_path / "out" / "a.pdf" / "document.md").read_text()
    assert "page 1" in text
    assert "<!-- Page 2 could not be read: The engine crashed on this page. -->" in text
    assert json.loads((tmp_path / "out" / "a.pdf" / "deepseek-ocr.json").read_text())["failed_pages"] == [2]
    assert run(*read, cwd=tmp_path).code == 1, "the page still failed"
    assert server.asked[2] == 1
    broken = False
    assert run(*read, "--retry-failed", cwd=tmp_path).code == 0
    assert server.asked == {1: 1, 2: 2, 3: 1}
    assert "page 2" in (tmp_path / "out" / "a.pdf" / "document.md").read_text()


def test_a_rejected_document_is_tried_again_only_with_retry_failed(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    read = ("read", "a.png", "-o", "out", "--base-url", server.url)
    first, second, third = (run(*read, *more, cwd=tmp_path) for more in ([], [], ["--retry-failed"]))
    assert (first.code, second.code, third.code) == (1, 1, 1)
    assert "from an earlier run" in second.error
    assert "from an earlier run" not in first.error + third.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such.pdf", "-o", "out"], "no-such.pdf"),
        (["*.tiff", "-o", "out"], "*.tiff"),
        (["empty", "-o", "out"], "empty"),
        (["a.png", "-o", "."], "a.png is a file"),
        (["a.png", "b.png"], "-o OUT"),
        (["a.png", "--overlays"], "-o OUT"),
        (["a.png", "-o", "out", "--pages", "0"], "numbered from 1"),
        (["a.png", "-o", "out", "--pages", "3-1"], "reversed"),
        (["a.png", "-o", "out", "--dpi", "5"], "36"),
        (["a.png", "-o", "out", "--base-url", "localhost:8000"], "http"),
        (["a.png", "-o", "out", "--concurrency", "0"], "concurrency"),
    ],
)
def test_invalid_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    done = run("read", *arguments, cwd=tmp_path)
    assert done.code == 2
    assert message in " ".join(done.error.split())
    assert not (tmp_path / "out").exists()


def test_two_documents_with_the_same_output_folder(tmp_path: Path) -> None:
    here, one, two = (tmp_path / name for name in ("here", "one", "two"))
    for folder in (here, one, two):
        folder.mkdir()
    files = [write_image(one / "a.png"), write_image(two / "a.png")]
    done = run("read", *files, "-o", "out", cwd=here)
    assert done.code == 2
    assert all(str(file) in done.error for file in files)


def test_standard_output_is_closed(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(document(30))
    server.seconds = 0.05
    process = start("read", "a.pdf", "--json", "--base-url", server.url, cwd=tmp_path, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert b"Broken" not in process.stderr.read()
    assert server.asked[30] == 0


def test_standard_output_is_full(server: FakeServer, tmp_path: Path) -> None:
    """The run ends, because all further pages would be read in vain."""
    server.seconds = 0.1
    for number in range(1, 20):
        write_image(tmp_path / f"{number}.png", number)
    with Path("/dev/full").open("wb") as full:
        process = start(
            "read", ".", "--json", "--concurrency", "1", "--base-url", server.url, cwd=tmp_path, stdout=full
        )
        done = Done(process)
    assert done.code == 1
    assert "No space left on device" in done.error
    assert sum(server.asked.values()) < 3


def test_unusual_line_separators_do_not_split_events(server: FakeServer, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    server.answer = lambda _: "one\u2028two\x85three\x0bfour"
    done = run("read", "a.png", "--base-url", server.url, cwd=tmp_path)
    assert (done.code, done.out) == (0, "one\u2028two\x85three\x0bfour\n"), done.error


def test_named_pipe(server: FakeServer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = start("read", "pipe", "--base-url", server.url, cwd=tmp_path)
    (tmp_path / "pipe").write_bytes(document(2))
    done = Done(process)
    assert (done.code, done.out.count("page ")) == (0, 2), done.error


def test_control_characters_are_replaced(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "[bold]\x1b[31m报告.png").write_bytes(b"no picture")
    done = run("read", ".", "-o", "out", "--base-url", server.url, cwd=tmp_path)
    assert done.code == 1
    assert "\x1b" not in done.error
    assert "[bold]\N{REPLACEMENT CHARACTER}[31m报告.png" in done.error


def test_a_server_that_does_not_answer_to_its_name(server: FakeServer, tmp_path: Path) -> None:
    """The server is at fault, not the document: it can be read later."""
    write_image(tmp_path / "a.png", 1)
    proxy = {"http_proxy": f"http://127.0.0.1:{server.port}"}  # so that the name need not exist
    done = run("read", "a.png", "-o", "out", "--base-url", "http://ocr.example/v1", cwd=tmp_path, variables=proxy)
    assert done.code != 0
    assert "ALLOWED_HOSTS" in done.error
    assert not (tmp_path / "out" / "a.png").exists()
