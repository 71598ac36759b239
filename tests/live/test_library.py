"""The Python library with the real engine, and answers with positions, which the engine is made to give."""

from __future__ import annotations

import gc
import io
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image, ImageDraw

from config import EMBEDDED_CHECKPOINT, Settings
from ocr_server.engine.checks import DecodingCheck
from ocr_server.engine.vllm_engine import VllmEngine
from ocr_server.errors import InvalidRequest
from ocr_server.library import Ocr
from ocr_server.reading.page import Page, PageDelta

pytestmark = pytest.mark.live

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


class ScriptedEngine(VllmEngine):
    """The real engine, whose next answers can be set. Structured output then allows no other answer."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, DecodingCheck(settings), dedicated=False)
        self.answers: list[str] = []
        self.reads = 0

    async def read(self, page: Page) -> AsyncGenerator[PageDelta]:
        self.reads += 1
        if self.answers:
            page = replace(page, decoding=replace(page.decoding, choice=(self.answers.pop(0),)))
        async with aclosing(super().read(page)) as deltas:
            async for delta in deltas:
                yield delta


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(MODEL_PATH=str(EMBEDDED_CHECKPOINT), CPU_KV_CACHE_GIB=1)


@pytest.fixture(scope="module")
def engine(settings: Settings) -> ScriptedEngine:
    return ScriptedEngine(settings)


@pytest.fixture(scope="module")
def ocr(settings: Settings, engine: ScriptedEngine) -> Iterator[Ocr]:
    with Ocr(settings, engine) as ocr:
        yield ocr


def test_a_folder_is_read(ocr: Ocr) -> None:
    pages = list(ocr.read(EXAMPLES, prompt="Free OCR."))
    names = [(page.path.name, page.number) for page in pages]
    assert names == [
        ("letter.jpg", 1),
        ("market.png", 1),
        ("notice.png", 1),
        *(("papers.pdf", number) for number in (1, 2, 3)),
        ("receipt.png", 1),
        ("sign.png", 1),
    ]
    for page in pages:
        if page.path.suffix != ".pdf":
            assert page.markdown == page.path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert (page.finish_reason, page.error) == ("stop", None)


def test_the_heap_of_the_calling_program_is_not_frozen(ocr: Ocr) -> None:
    list(ocr.read(EXAMPLES / "sign.png", prompt="Free OCR."))
    assert gc.get_freeze_count() == 0


def test_errors_are_raised(ocr: Ocr, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        list(ocr.read(EXAMPLES / "papers.pdf", pages=[3]))
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(InvalidRequest):
        list(ocr.read(tmp_path))
    with pytest.raises(OSError, match=r"b\.png"):
        list(ocr.read(tmp_path / "b.png"))


ANSWER = (
    "<|ref|>title<|/ref|><|det|>[[50, 50, 500, 150]]<|/det|>\n# Squares\n\n"
    "<|ref|>image<|/ref|><|det|>[[100, 200, 300, 400], [600, 600, 900, 900]]<|/det|>"
)


def test_blocks_with_positions_through_the_engine(ocr: Ocr, engine: ScriptedEngine, tmp_path: Path) -> None:
    """A PDF page at two resolutions: the boxes match the squares on the page at both."""
    page = Image.new("RGB", (1000, 1400), "white")
    ImageDraw.Draw(page).rectangle((100, 280, 300, 560), fill="red")
    ImageDraw.Draw(page).rectangle((600, 840, 900, 1260), fill="blue")
    path = tmp_path / "squares.pdf"
    page.save(path, "PDF", resolution=100)
    for dpi in (72, 144):
        engine.answers.append(ANSWER)
        (read,) = ocr.read(path, dpi=dpi, include_image_base64=True, output="overlay", ngram_size=0)
        assert read.answer == ANSWER
        assert read.markdown == "# Squares\n\n![](page-1-figure-1.jpeg)\n![](page-1-figure-2.jpeg)"
        assert [block.label for block in read.blocks] == ["title", "image"]
        for figure, colour in zip(read.figures, ((255, 0, 0), (0, 0, 255)), strict=True):
            assert figure.jpeg is not None
            cut = Image.open(io.BytesIO(figure.jpeg)).convert("RGB")
            assert cut.size == figure.size
            for at in ((5, 5), (cut.width - 6, cut.height - 6), (cut.width // 2, cut.height // 2)):
                assert cut.getpixel(at) == pytest.approx(colour, abs=30)
        assert read.overlay is not None
        assert Image.open(io.BytesIO(read.overlay)).size == pytest.approx((10 * dpi, 14 * dpi), abs=1)


def test_a_repetitive_answer_is_ended_and_the_page_read_again(ocr: Ocr, engine: ScriptedEngine) -> None:
    engine.answers.append("on and on " * 200)
    before = engine.reads
    (read,) = ocr.read(EXAMPLES / "sign.png", prompt="Free OCR.", ngram_size=0)
    assert engine.reads - before == 2
    assert (read.finish_reason, read.answer) == ("stop", (EXAMPLES / "sign.txt").read_text().strip())


def test_a_document_with_pages_of_different_sizes(ocr: Ocr, tmp_path: Path) -> None:
    document = pypdfium2.PdfDocument.new()
    for size in ((200, 100), (100, 200), (300, 300)):
        document.new_page(*size)
    path = tmp_path / "sizes.pdf"
    document.save(path)
    pages = list(ocr.read(path, prompt="Free OCR.", mode="tiny", max_tokens=3))
    assert [page.number for page in pages] == [1, 2, 3]
    assert all(page.error is None for page in pages)
