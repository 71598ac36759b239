"""Keep the guide's table of settings true to config.py.

python scripts/settings_table.py           rewrites the table in OPENAI_API_GUIDE.md
python scripts/settings_table.py --check   exits with 1 if it is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import ENV_PREFIX, Settings  # noqa: E402

GUIDE = ROOT / "OPENAI_API_GUIDE.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def table() -> str:
    rows = ["| setting | flag | default | |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = f"`--{name.lower().replace('_', '-')}`"
        if name == "MODEL_PATH":
            flag = "`--model`"
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {flag} | {_default(field.default)} | {meaning} |")
    rows.append(f"\nThe environment variable is the name with `{ENV_PREFIX}` in front: `{ENV_PREFIX}PORT=8080`.")
    return "\n".join(rows)


def _default(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "`" + text.replace("|", "\\|") + "`" if text else "none"


def main() -> int:
    text = GUIDE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        return 0 if made == text else 1
    GUIDE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
