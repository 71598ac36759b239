"""Keep the table of settings in both API guides in line with config.py.

python scripts/settings_table.py           rewrites the tables in OPENAI_API_GUIDE.md and OPENAI_API_GUIDE.zh-CN.md
python scripts/settings_table.py --check   exits with 1 if a table is out of date

Names, flags and defaults come from config.py, and so do the English descriptions. The Chinese descriptions are written
by hand, in the last column of the Chinese table, and are kept when the table is rewritten. A new setting gets a row
with an empty description; the script reports it and exits with 1 until somebody fills it in.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import ENV_PREFIX, Settings  # noqa: E402

ENGLISH = ROOT / "OPENAI_API_GUIDE.md"
CHINESE = ROOT / "OPENAI_API_GUIDE.zh-CN.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
ROW = re.compile(r"^\| `(?P<name>[A-Z0-9_]+)` \|.*?(?<!\\)\|.*?(?<!\\)\| ?(?P<description>.*?) ?\|$", re.MULTILINE)


def english_table() -> str:
    descriptions = {
        name: " ".join((field.description or "").split()).replace("|", "\\|")
        for name, field in Settings.model_fields.items()
    }
    return "\n".join(
        [
            "| setting | flag | default | description |",
            "|---|---|---|---|",
            *_rows(descriptions, no_default="none"),
            "",
            f"The environment variable is the name with the prefix `{ENV_PREFIX}`, as in `{ENV_PREFIX}PORT=8080`.",
        ]
    )


def chinese_table(descriptions: dict[str, str]) -> str:
    return "\n".join(
        [
            "| 设置 | 命令行参数 | 默认值 | 说明 |",
            "|---|---|---|---|",
            *_rows(descriptions, no_default="无"),
            "",
            f"环境变量名是在设置名前加上 `{ENV_PREFIX}`，例如 `{ENV_PREFIX}PORT=8080`。",
        ]
    )


def written_descriptions(guide: str) -> dict[str, str]:
    """Return the description of each setting in the table of `guide`, as it is written there."""
    return {row["name"]: row["description"] for row in ROW.finditer(_split(guide)[1])}


def updated(english: str, chinese: str) -> tuple[str, str]:
    """Return the text of both guides with their tables made anew."""
    return (
        _with_table(english, english_table()),
        _with_table(chinese, chinese_table(written_descriptions(chinese))),
    )


def undescribed(chinese: str) -> list[str]:
    """Return the settings that have no description in the Chinese guide."""
    descriptions = written_descriptions(chinese)
    return [name for name in Settings.model_fields if not descriptions.get(name)]


def _rows(descriptions: dict[str, str], no_default: str) -> list[str]:
    rows = []
    for name, field in Settings.model_fields.items():
        flag = "--model" if name == "MODEL_PATH" else f"--{name.lower().replace('_', '-')}"
        default = _default(field.default) or no_default
        rows.append(f"| `{name}` | `{flag}` | {default} | {descriptions.get(name, '')} |")
    return rows


def _default(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def _split(guide: str) -> tuple[str, str, str]:
    """Split a guide into what precedes the table, the table, and what follows it."""
    before, rest = guide.split(f"{BEGIN}\n")
    table, after = rest.split(f"\n{END}")
    return before, table, after


def _with_table(guide: str, table: str) -> str:
    before, _, after = _split(guide)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    guides = (ENGLISH, CHINESE)
    english, chinese = (guide.read_text(encoding="utf-8") for guide in guides)
    problems = [
        f"{CHINESE.name}: {name} has no description; write one in the last column of its row."
        for name in undescribed(chinese)
    ]
    for guide, old, new in zip(guides, (english, chinese), updated(english, chinese), strict=True):
        if old == new:
            continue
        if "--check" in sys.argv:
            problems.append(f"{guide.name}: the settings table is out of date; run python scripts/settings_table.py.")
        else:
            guide.write_text(new, encoding="utf-8")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
