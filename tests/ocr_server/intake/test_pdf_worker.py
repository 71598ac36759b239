"""Rendering PDFs in the process of the tests; test_pdf.py does it in worker processes."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ocr_server.intake import pdf_worker
from ocr_server.intake.pdf_errors import PdfError
from ocr_server.intake.pdf_worker import size_in_pixels
from ocr_server.intake.worker import Pixels
from tests.ocr_server.intake import pdfs
from tests.ocr_server.intake.pdfs import filled, pdf

WHITE, BLACK, RED, BLUE, LIME = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 0, 255), (0, 255, 0)
Store = Callable[[bytes], int]
"""Returns the descriptor of a file with this content."""


@pytest.fixture
def store() -> Iterator[Store]:
    files: list[int] = []

    def write(data: bytes) -> int:
        files.append(os.memfd_create("case"))
        os.write(files[-1], data)
        return files[-1]

    yield write
    pdf_worker.forget()
    for file in files:
        os.close(file)


def count_pages(file: int, password: str | None) -> int:
    pdf_worker.take(file)
    return pdf_worker.count_pages(password)


def render(file: int, password: str | None, index: int, dpi: float, max_pixels: int) -> tuple[float, Pixels]:
    pdf_worker.take(file)
    return pdf_worker.render(password, index, dpi, max_pixels)


def page(file: int, index: int = 0, dpi: float = 72, max_pixels: int = 10_000_000) -> Image.Image:
    _, (width, height, rows) = render(file, None, index, dpi, max_pixels)
    return Image.frombytes("RGB", (width, height), rows)


def kind(file: int, password: str | None = None, index: int | None = None, max_pixels: int = 10_000_000) -> str:
    def attempt() -> None:
        if index is None:
            count_pages(file, password)
        else:
            render(file, password, index, 72, max_pixels)

    with pytest.raises(PdfError) as caught:
        attempt()
    return caught.value.kind


class TestPages:
    def test_text_is_dark_on_white(self, store: Store) -> None:
        shown = page(store(pdf(pdfs.text("Hello", size=40))), dpi=144)
        assert shown.size == (1224, 1584)
        assert shown.getpixel((5, 5)) == WHITE
        left, top, right, bottom = shown.convert("L").point(lambda value: 255 * (value < 128)).getbbox() or (0,) * 4
        assert 100 <= left <= 110
        assert 270 <= right <= 284  # Helvetica's Hello is 91 points wide at this size
        assert top < bottom == pytest.approx(144, abs=2)  # the baseline is 72 points from the top

    def test_a_scan(self, store: Store) -> None:
        scan = Image.new("RGB", (850, 1100), "red")
        scan.paste("blue", (0, 0, 850, 550))
        file = io.BytesIO()
        scan.save(file, "PDF", resolution=100, quality=95)
        shown = page(store(file.getvalue()))
        assert shown.size == (612, 792)
        for place, colour in (((300, 100), BLUE), ((300, 700), RED)):
            assert shown.getpixel(place) == pytest.approx(colour, abs=4)

    def test_colours_are_in_order(self, store: Store) -> None:
        file = store(pdf(filled(1, 0, 0), filled(0, 0, 1), filled(0, 1, 0)))
        assert [page(file, index).getpixel((9, 9)) for index in range(3)] == [RED, BLUE, LIME]

    @pytest.mark.parametrize(
        ("turn", "size", "lower_left_is_at"),
        [
            (0, (200, 100), (10, 90)),
            (90, (100, 200), (10, 10)),
            (180, (200, 100), (190, 10)),
            (270, (100, 200), (90, 190)),
        ],
    )
    def test_a_turned_page_is_upright(
        self, turn: int, size: tuple[int, int], lower_left_is_at: tuple[int, int], store: Store
    ) -> None:
        shown = page(store(pdf(filled(1, 0, 0, (0, 0, 20, 20)), size=(200, 100), entries=b"/Rotate %d" % turn)))
        assert shown.size == size
        assert shown.getpixel(lower_left_is_at) == RED
        assert sum(count for count, colour in shown.getcolors() or [] if colour == RED) == 400

    def test_only_the_crop_box_is_seen(self, store: Store) -> None:
        content = filled(1, 0, 0, (100, 200, 50, 50))
        shown = page(store(pdf(content, entries=b"/CropBox[100 200 150 250]")))
        assert shown.getcolors() == [(2500, RED)]

    def test_pages_of_several_sizes(self, store: Store) -> None:
        two = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 100]>>"
        objects = [pdfs.CATALOG, b"<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2/MediaBox[0 0 50 60]>>"]
        file = store(pdfs.pdf_of([*objects, b"<</Type/Page/Parent 2 0 R>>", two]))
        assert [page(file, index).size for index in range(2)] == [(50, 60), (300, 100)]

    def test_half_transparent_black_is_grey(self, store: Store) -> None:
        file = store(pdf(b"/G gs " + filled(0, 0, 0), entries=b"/Resources<</ExtGState<</G<</ca 0.5>>>>>>"))
        assert page(file).getpixel((50, 50)) == pytest.approx((128, 128, 128), abs=2)

    @pytest.mark.parametrize("kind", [b"/Subtype/Stamp", b"/Subtype/Widget/FT/Tx/T(name)"])
    def test_annotations_and_form_fields_are_drawn(self, kind: bytes, store: Store) -> None:
        look = pdfs.stream(filled(1, 0, 0), b"/Type/XObject/Subtype/Form/BBox[0 0 50 50]")
        field = b"<</Type/Annot/Rect[100 100 150 150]/F 4/AP<</N 3 0 R>>" + kind + b">>"
        data = pdf(b"", entries=b"/Annots[4 0 R]", more=[look, field])
        data = data.replace(pdfs.CATALOG, b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[4 0 R]>>>>")
        assert page(store(data)).getpixel((125, 792 - 125)) == RED

    def test_a_document_stays_open_until_another_is_taken(self, store: Store) -> None:
        first, second = store(pdf(filled(1, 0, 0), filled(0, 0, 1))), store(pdf(filled(0, 1, 0)))
        assert page(first).getpixel((9, 9)) == RED
        assert pdf_worker.render(None, 1, 72, 1_000_000)[1].rows[:3] == bytes(BLUE)
        assert page(second).getpixel((9, 9)) == LIME
        assert page(first, 1).getpixel((9, 9)) == BLUE

    def test_forget_closes_a_document(self, store: Store) -> None:
        def mapped() -> bool:
            return "memfd:case" in Path("/proc/self/maps").read_text()

        page(store(pdf(filled(1, 0, 0))))
        assert mapped()
        pdf_worker.forget()
        assert not mapped()


class TestEncryption:
    @pytest.mark.parametrize("password", ["secret", "owner", "sécret"])
    def test_the_right_password(self, password: str, store: Store) -> None:
        file = store(pdfs.encrypted(filled(1, 0, 0), "secret" if password == "owner" else password))
        assert count_pages(file, password) == 1
        assert render(file, password, 0, 72, 10_000_000)[1].rows[:3] == bytes(RED)

    def test_a_missing_and_a_wrong_password(self, store: Store) -> None:
        file = store(pdfs.encrypted(filled(1, 0, 0), "secret"))
        assert kind(file) == kind(file, "") == "password_required"
        assert kind(file, "Secret") == kind(file, "secret ") == kind(file, "密码\0") == "password_wrong"
        assert count_pages(file, "secret") == 1
        with pytest.raises(PdfError, match="password_wrong"):  # also when it is open already
            pdf_worker.count_pages("Secret")

    def test_a_pdf_that_only_restricts_permissions(self, store: Store) -> None:
        assert page(store(pdfs.encrypted(filled(1, 0, 0), ""))).getpixel((9, 9)) == RED

    def test_a_password_where_none_is_needed(self, store: Store) -> None:
        assert count_pages(store(pdf(b"")), "secret") == 1


class TestDamage:
    WHOLE = pdf(filled(1, 0, 0))

    @pytest.mark.parametrize("kept", [0.1, 0.3, 0.5])
    def test_cut_short(self, kept: float, store: Store) -> None:
        assert kind(store(self.WHOLE[: int(len(self.WHOLE) * kept)])) == "damaged"

    def test_garbage_after_the_header(self, store: Store) -> None:
        assert kind(store(b"%PDF-1.7\n" + bytes(range(256)) * 40)) == "damaged"

    def test_an_empty_file(self, store: Store) -> None:
        assert kind(store(b"")) == "damaged"

    def test_a_damaged_cross_reference_table_is_rebuilt(self, store: Store) -> None:
        assert page(store(self.WHOLE.replace(b"startxref\n", b"startxref\n9"))).getpixel((9, 9)) == RED

    def test_no_pages_after_another_error(self, store: Store) -> None:
        encrypted = store(pdfs.encrypted(b"", "secret"))
        for _ in range(2):
            assert kind(encrypted) == "password_required"
            assert kind(store(pdfs.NO_PAGES)) == "empty"

    def test_a_missing_page_leaves_the_others_readable(self, store: Store) -> None:
        data = pdf(filled(1, 0, 0), filled(0, 0, 1), filled(0, 1, 0))
        file = store(data.replace(b"/Kids[3 0 R 5 0 R 7 0 R]", b"/Kids[3 0 R 99 0 R 7 0 R]"))
        assert count_pages(file, None) == 3
        assert page(file, 0).getpixel((9, 9)) == RED
        assert kind(file, index=1) == "page_failed"
        assert page(file, 2).getpixel((9, 9)) == LIME

    def test_fewer_pages_than_it_says(self, store: Store) -> None:
        file = store(self.WHOLE.replace(b"/Count 1", b"/Count 99999"))
        assert count_pages(file, None) == 99999
        assert kind(file, index=99998) == "page_failed"


class TestSize:
    def test_a_page_too_large_for_the_resolution_is_rendered_at_a_lower_one(self, store: Store) -> None:
        file = store(pdf(filled(1, 0, 0), size=(14_400, 14_400)))
        dpi, (width, height, pixels) = render(file, None, 0, 144, 1_000_000)
        assert (width, height, dpi) == (1000, 1000, 5)
        assert len(pixels) == 3_000_000
        assert pixels[:3] == bytes(RED)

    @pytest.mark.parametrize("size", [(1e6, 1e6), (14_401, 14_401), (1e6, 100)])
    def test_a_giant_page(self, size: tuple[float, float], store: Store) -> None:
        assert kind(store(pdf(b"", size=size)), index=0, max_pixels=10_000_000) == "giant_page"

    def test_a_page_without_a_pixel(self, store: Store) -> None:
        assert kind(store(pdf(b"", size=(100, 0.1))), index=0) == "page_failed"

    @pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
    def test_a_page_without_a_valid_size(self, width: float) -> None:
        for size in ((width, 100.0), (100.0, width)):
            with pytest.raises(PdfError) as caught:
                size_in_pixels(*size, 144, 1_000_000)
            assert caught.value.kind == "page_failed"

    @given(st.floats(1e-3, 1e8), st.floats(1e-3, 1e8), st.floats(36, 600), st.integers(1, 10**9))
    def test_a_page_keeps_to_the_limits_and_its_shape(
        self, width_pt: float, height_pt: float, dpi: float, max_pixels: int
    ) -> None:
        failed = None
        try:
            width, height, got = size_in_pixels(width_pt, height_pt, dpi, max_pixels)
        except PdfError as error:
            failed = error.kind
        if failed is not None:
            assert failed == "page_failed" or (failed == "giant_page" and max(width_pt, height_pt) > 14_400)
            return
        assert min(width, height) >= 1
        assert width * height <= max_pixels
        assert max(width, height) <= 65_535
        assert got <= dpi
        assert width <= width_pt * got / 72 < width + 1
        assert height <= height_pt * got / 72 < height + 1
        # No lower than it must be.
        assert got == dpi or (width + 1) * (height + 1) >= max_pixels or max(width, height) >= 65_534
