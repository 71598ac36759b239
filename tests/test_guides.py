"""The READMEs, the guides and docs/: the Chinese guide mirrors the English one, and every link leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from scripts.settings_table import CHINESE, ENGLISH, undescribed, updated

ROOT = Path(__file__).resolve().parents[1]
GUIDES = (ENGLISH, CHINESE)
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

FENCE = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)```\n", re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMENT = re.compile(r"(^|[ \t]+)# .*$", re.MULTILINE)
LISTING_COMMENT = re.compile(r"(?<=\S) {2,}\S.*$", re.MULTILINE)
"""In a block without a language, such as a listing of a folder: what follows two or more spaces."""


def prose(document: Path) -> str:
    """Return the text of a document without its code blocks."""
    return FENCE.sub(r"\g<before>\n", document.read_text(encoding="utf-8"))


def headings(document: Path) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in HEADING.findall(prose(document))]


def code_blocks(document: Path) -> list[tuple[bool, str, str]]:
    """Return, for each code block, whether it is run by the tests, its language, and its code without comments."""
    return [
        (
            not block["before"].startswith("<!-- not run"),
            block["language"],
            (COMMENT if block["language"] else LISTING_COMMENT).sub("", block["code"]),
        )
        for block in FENCE.finditer(document.read_text(encoding="utf-8"))
    ]


def anchor(title: str) -> str:
    """Return the anchor that GitHub makes for a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors(document: Path) -> set[str]:
    return {anchor(title) for _, title in headings(document)}


def links(document: Path) -> list[str]:
    """Return the links of a document that lead to other files of the project or to its own headings."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(document))
    return [link for link in LINK.findall(without_code) if not re.match(r"[a-z]+:", link)]


def test_both_guides_have_the_same_structure_of_headings() -> None:
    english, chinese = ([level for level, _ in headings(guide)] for guide in GUIDES)
    assert len(english) > 20
    assert english == chinese


def test_both_guides_have_the_same_code_blocks_but_for_comments() -> None:
    english, chinese = (code_blocks(guide) for guide in GUIDES)
    assert len(english) > 20
    assert english == chinese


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_guides_table_of_contents_lists_its_sections_in_order(guide: Path) -> None:
    sections = [(title, anchor(title)) for level, title in headings(guide) if level == 2]
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", prose(guide), re.MULTILINE) == sections


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_relative_links_and_anchors_lead_somewhere(document: Path) -> None:
    broken = []
    for link in links(document):
        name, _, fragment = unquote(link).partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_readmes_and_guides_are_among_the_documents_with_links() -> None:
    linking = {document.name for document in DOCUMENTS if links(document)}
    assert {"README.md", "README.zh-CN.md", "OPENAI_API_GUIDE.md", "OPENAI_API_GUIDE.zh-CN.md"} <= linking


def test_the_tables_of_settings_are_those_of_the_program() -> None:
    check = [sys.executable, "scripts/settings_table.py", "--check"]
    result = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_a_setting_that_is_missing_from_a_table_or_has_another_default_is_noticed(guide: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in GUIDES}
    row = next(line for line in texts[guide].splitlines() if line.startswith("| `PORT` |"))
    for changed in ("", row.replace("8000", "8001"), row.replace("--port", "--ports")):
        altered = texts | {guide: texts[guide].replace(row, changed)}
        made = dict(zip(GUIDES, updated(altered[ENGLISH], altered[CHINESE]), strict=True))
        assert made[guide] != altered[guide]


def test_a_setting_without_a_chinese_description_is_noticed() -> None:
    chinese = CHINESE.read_text(encoding="utf-8")
    row = next(line for line in chinese.splitlines() if line.startswith("| `PORT` |"))
    assert undescribed(chinese) == []
    assert undescribed(chinese.replace(f"{row}\n", "")) == ["PORT"]
    assert undescribed(updated(ENGLISH.read_text(encoding="utf-8"), chinese.replace(f"{row}\n", ""))[1]) == ["PORT"]
