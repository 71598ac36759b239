"""Docling: its pipeline for vision models with the preset for DeepSeek-OCR, of which only the address is changed."""

import json
import os
import sys

from docling.datamodel.base_models import InputFormat
from docling.datamodel.pipeline_options import VlmPipelineOptions
from docling.datamodel.vlm_model_specs import DEEPSEEKOCR_OLLAMA
from docling.document_converter import DocumentConverter, ImageFormatOption, PdfFormatOption
from docling.pipeline.vlm_pipeline import VlmPipeline

PICTURE, PDF = sys.argv[1:]
preset = DEEPSEEKOCR_OLLAMA.model_copy(update={"url": f"{os.environ['OCR_BASE_URL']}/chat/completions"})
options = VlmPipelineOptions(vlm_options=preset, enable_remote_services=True)
converter = DocumentConverter(
    format_options={
        InputFormat.PDF: PdfFormatOption(pipeline_cls=VlmPipeline, pipeline_options=options),
        InputFormat.IMAGE: ImageFormatOption(pipeline_cls=VlmPipeline, pipeline_options=options),
    }
)
for name, path in (("picture", PICTURE), ("pdf", PDF)):
    document = converter.convert(path).document
    print(json.dumps([name, "VlmPipeline", preset.prompt, document.export_to_markdown()]))
