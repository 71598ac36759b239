"""Create the screenshots in docs/images from a running server.

python scripts/screenshots.py --base-url http://localhost:8000
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
MARKET = ROOT / "examples" / "market.png"
WIDE = {"width": 1200, "height": 780}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LINES_PROMPT = 1
"""Index of the prompt `OCR this image` among the page's prompts."""
FINISHED = re.compile("^Read the page|^识别完毕")


def take_screenshot(browser: Browser, base_url: str, name: str, *, block: int | None = None, **context: Any) -> None:
    """Read the lines of an example in a new window, hover over a block, and save a screenshot.

    Args:
        name: of the file, without suffix.
        block: index of the block to hover over; without it, the screenshot shows the full page.
        context: options of the browser context.
    """
    window = browser.new_context(**context)
    tab = window.new_page()
    tab.goto(f"{base_url}/ui/")
    tab.locator("#model:not(:empty)").wait_for(state="attached")
    tab.locator("#prompts input").nth(LINES_PROMPT).check(force=True)
    tab.set_input_files("#file", MARKET)
    expect(tab.locator("#status")).to_have_text(FINISHED, timeout=120_000)
    if block is not None:
        tab.locator(".block").nth(block).hover()
    tab.wait_for_timeout(700)  # until the colour transitions have ended
    path = IMAGES / f"{name}.png"
    tab.screenshot(path=path, full_page=block is None)
    window.close()
    smaller = Image.open(path).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    smaller.save(path, optimize=True)


def save_overlay(base_url: str) -> None:
    """Save the overlay that the server draws on the example."""
    with MARKET.open("rb") as file:
        answer = httpx.post(
            f"{base_url}/v1/ocr",
            files={"file": file},
            data={"output": "overlay", "prompt": "<|grounding|>OCR this image."},
            timeout=120,
        ).raise_for_status()
    (IMAGES / "overlay.png").write_bytes(answer.content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://localhost:8000")
    base_url = parser.parse_args().base_url
    IMAGES.mkdir(exist_ok=True)
    save_overlay(base_url)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        take_screenshot(browser, base_url, "page", block=2, viewport=WIDE)
        take_screenshot(browser, base_url, "page-dark", block=1, viewport=WIDE, color_scheme="dark")
        take_screenshot(browser, base_url, "page-zh", block=2, viewport=WIDE, locale="zh-CN")
        take_screenshot(browser, base_url, "phone", **PHONE)


if __name__ == "__main__":
    main()
