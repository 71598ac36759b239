"""`plan_ocr`: an OCR request becomes a source, a prompt and decoding options."""

from __future__ import annotations

from typing import Any

import pytest

from config import Settings
from deepseek_ocr.guard import Guard
from deepseek_ocr.modes import MODES
from ocr_server.dialects.ocr.plan import plan_ocr
from ocr_server.dialects.ocr.wire import OcrParameters, OcrRequest
from ocr_server.errors import DecodingError, InvalidRequest, NotFound
from ocr_server.intake.errors import SourceError, SourceTooLarge
from ocr_server.intake.source import Url
from ocr_server.output.artifacts import Artifacts
from ocr_server.plan import ReadPlan
from ocr_server.reading.decoding import Decoding

URL = "data:a"


@pytest.fixture
def read(settings: Settings) -> Any:
    def planned(**fields: Any) -> ReadPlan:
        return plan_ocr(OcrRequest.model_validate({"document": {"document_url": URL}} | fields), settings)

    return planned


class TestPlan:
    def test_defaults(self, read: Any, settings: Settings) -> None:
        plan = read()
        (planned,) = plan.sources
        assert (planned.source.content, planned.source.pages, planned.source.password) == (Url(URL), None, None)
        assert planned.source.dpi == 144
        assert planned.mode == settings.resolution_mode
        assert plan.prompt == settings.DEFAULT_PROMPT
        assert plan.decoding == Decoding(guard=Guard(settings.NGRAM_SIZE, settings.WINDOW_SIZE))
        assert plan.artifacts == Artifacts(blocks=True)
        assert not plan.show_pages
        assert plan.page_limit is None

    def test_all_values_arrive(self, read: Any) -> None:
        plan = read(
            model="deepseek-ocr:small",
            pages="0,2-4",
            dpi=72,
            password="secret",
            prompt=" Free OCR.\n",
            max_tokens=9,
            ngram_size=20,
            window_size=50,
            whitelist_token_ids=[3],
            confidence_scores_granularity="word",
            include_image_base64=True,
        )
        (planned,) = plan.sources
        assert planned.source.pages.resolve(9, most=9) == [0, 2, 3, 4]
        assert (planned.source.dpi, planned.source.password, planned.mode) == (72, "secret", MODES["small"])
        assert plan.prompt == "Free OCR."
        assert plan.decoding == Decoding(max_tokens=9, logprobs=0, guard=Guard(20, 50, (3,)))
        assert plan.artifacts == Artifacts(blocks=True, figures=True)

    def test_the_option_has_precedence_over_the_models_name(self, read: Any) -> None:
        assert read(model="deepseek-ocr:small", mode="tiny").sources[0].mode == MODES["tiny"]

    @pytest.mark.parametrize(
        ("output", "artifacts"),
        [
            ("json", Artifacts(blocks=True)),
            ("markdown", Artifacts(blocks=True)),
            ("raw", Artifacts(blocks=True)),
            ("overlay", Artifacts(blocks=True, overlay=True)),
        ],
    )
    def test_the_output_says_what_is_made_of_each_page(self, read: Any, output: str, artifacts: Artifacts) -> None:
        assert read(output=output).artifacts == artifacts

    def test_a_stream_is_decoded_page_by_page(self, read: Any) -> None:
        """Its events are whole pages, so that tokens are not needed as they come."""
        assert read(stream=True).decoding.stream is False

    def test_an_unknown_model(self, read: Any) -> None:
        with pytest.raises(NotFound) as caught:
            read(model="gpt-4o")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"base_size": 100}, "base_size"),
            ({"ngram_size": -1}, "ngram_size"),
            ({"pages": "x"}, "pages"),
            ({"prompt": "x" * 100_000}, "prompt"),
            ({"document_annotation_prompt": "Sum it up."}, "document_annotation_prompt"),
            ({"stream": True, "output": "raw"}, "output"),
        ],
    )
    def test_an_error_names_the_parameter(self, read: Any, fields: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            read(**fields)
        assert caught.value.param == param


class TestErrors:
    """The plan knows which request parameter an error of the intake or the engine is about."""

    @pytest.mark.parametrize(
        ("document", "param"),
        [
            ({"document_url": URL}, "document.document_url"),
            ({"image_url": URL}, "document.image_url"),
            ({"image_url": {"url": URL}}, "document.image_url.url"),
        ],
    )
    def test_the_document(self, read: Any, document: dict[str, Any], param: str) -> None:
        plan = read(document=document)
        error = plan.api_error(SourceError("It is torn.", code="torn"))
        assert (error.status, error.code, error.param) == (400, "torn", param)
        assert plan.api_error(SourceTooLarge("It is huge.")).param == param

    def test_the_selection_of_pages(self, read: Any) -> None:
        assert read().api_error(SourceError("No such page.", about="pages")).param == "pages"

    @pytest.mark.parametrize("field", ["prompt", "max_tokens"])
    def test_a_decoding_option(self, read: Any, field: str) -> None:
        assert read().api_error(DecodingError("m", field=field)).param == field

    @pytest.mark.parametrize(("given", "param"), [({}, "input_file_id"), ({"parameter": "file"}, "file")])
    def test_content_from_elsewhere(self, settings: Settings, given: dict[str, str], param: str) -> None:
        """A file of a batch, or an upload."""
        plan = plan_ocr(OcrParameters(), settings, b"content", **given)
        assert plan.sources[0].source.content == b"content"
        assert plan.api_error(SourceError("It is torn.")).param == param
