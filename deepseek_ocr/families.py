"""The models that can be served, one object for each architecture.

Everything that depends on the model is looked up here: resolution modes, prompts, special tokens, labels, the scale of
boxes and the defaults of the n-gram guard. A further model of the family is a further `Family` in `FAMILIES`, plus the
modules that are new in it (its vLLM class, its image preparation).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.guard import Guard
from deepseek_ocr.modes import MODES, ResolutionMode


@dataclass(frozen=True)
class Family:
    """What the server knows of a model."""

    architecture: str
    """As `config.json` names it under `architectures`."""
    model_class: str
    """The class that vLLM runs, as `module:class`."""
    published: tuple[str, ...]
    """Hugging Face ids of checkpoints with this architecture."""
    modes: Mapping[str, ResolutionMode]
    """Named resolution modes."""
    retry_modes: tuple[str, str]
    """Modes in which a page is read again that repeats itself; the second one if it was read in the first."""
    prompts: Mapping[str, str]
    """Task → the prompt that the model was trained with. `text` in `locate` stands for what is searched for."""
    image_token: str
    """Placeholder of the picture in the prompt."""
    prompt_tokens: tuple[str, ...]
    """Special tokens that a user may type; every other special token is read as plain characters."""
    labels: tuple[str, ...]
    """Names of blocks. These are labels whatever follows them; other words only if text follows."""
    figure_label: str
    """The label of blocks that are pictures."""
    box_scale: int
    """Largest coordinate: boxes run from 0 to this over the page's width and height."""
    guard: Guard
    """Published settings of the n-gram guard."""

    @property
    def instruction_tokens(self) -> tuple[str, ...]:
        """The prompt tokens that are not markup of tables, which other texts have, too."""
        return tuple(token for token in self.prompt_tokens if token.startswith("<|"))


DEEPSEEK_OCR = Family(
    architecture="DeepseekOCRForCausalLM",
    model_class="deepseek_ocr.model:DeepseekOCRForCausalLM",
    published=("deepseek-ai/DeepSeek-OCR",),
    modes=MODES,
    retry_modes=("base", "gundam"),
    prompts={
        "markdown": "<|grounding|>Convert the document to markdown.",
        "lines": "<|grounding|>OCR this image.",
        "free": "Free OCR.",
        "figure": "Parse the figure.",
        "describe": "Describe this image in detail.",
        "locate": "Locate <|ref|>text<|/ref|> in the image.",
    },
    image_token="<image>",
    prompt_tokens=(
        "<|grounding|>",
        "<|ref|>",
        "<|/ref|>",
        "<|det|>",
        "<|/det|>",
        "<td>",
        "</td>",
        "<tr>",
        "</tr>",
    ),
    labels=(
        "title",
        "text",
        "table",
        "image",
        "image_caption",
        "sub_title",
        "equation",
        "list",
        "table_caption",
        "table_footnote",
        "image_footnote",
        "formula",
        "header",
        "footer",
        "footnote",
        "page_number",
    ),
    figure_label="image",
    box_scale=999,
    guard=Guard(ngram_size=30, window_size=90),
)
"""Sources: the configuration and scripts of deepseek-ai/DeepSeek-OCR, and arXiv 2510.18234."""

FAMILIES: Mapping[str, Family] = {family.architecture: family for family in (DEEPSEEK_OCR,)}
"""By architecture."""


def family_of(model: str) -> Family:
    """The family of a model, as far as can be told before it is downloaded.

    Args:
        model: A folder with a `config.json`, or a Hugging Face id.

    Returns:
        The family that `config.json` names or that publishes this id; `DEEPSEEK_OCR` if neither is known. Whether the
        checkpoint really is one is checked when it is loaded.
    """
    try:
        architectures = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))[
            "architectures"
        ]
        return FAMILIES[architectures[0]]
    except (OSError, ValueError, LookupError, TypeError):
        return next((family for family in FAMILIES.values() if model in family.published), DEEPSEEK_OCR)


def mode_name(mode: ResolutionMode) -> str | None:
    """The name of a resolution mode in any of the families; None if it has none."""
    named = ((name, each) for family in FAMILIES.values() for name, each in family.modes.items())
    return next((name for name, each in named if each == mode), None)
