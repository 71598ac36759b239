"""Languages, small screens, light and dark mode, keyboard operation and accessibility checks."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.dialects.service.web_page import FILES
from tests.ui.browser import PAPERS, RECEIPT, choose_file, wait_until_read
from tests.ui.conftest import OpenTab, Site

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CHINESE = re.compile("[一-鿿]")
FINISHED_IN_CHINESE = re.compile("^全部 3 页识别完毕")


class TestLanguages:
    @pytest.mark.parametrize("locale", ["zh-CN", "zh-TW", "zh"])
    def test_a_chinese_browser_gets_chinese_texts(self, site: Site, open_tab: OpenTab, locale: str) -> None:
        tab = open_tab(site, locale=locale)
        expect(tab.locator("html")).to_have_attribute("lang", "zh-Hans")
        expect(tab.locator("#drop")).to_contain_text("将图片或 PDF 拖放到此处")

    def test_other_browsers_get_english_and_can_switch(self, site: Site, open_tab: OpenTab) -> None:
        tab = open_tab(site, locale="fr-FR")
        expect(tab.locator("html")).to_have_attribute("lang", "en")
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        tab.locator("#language").click()
        expect(tab.locator("#status")).to_have_text(FINISHED_IN_CHINESE)
        expect(tab.locator("#strip button").first).to_have_attribute("aria-label", "第 1 页：已识别")
        tab.reload()
        expect(tab.locator("#read")).to_have_text("识别")
        tab.locator("#language").click()
        expect(tab.locator("#read")).to_have_text("Read")

    def test_every_text_exists_in_both_languages(self) -> None:
        words = {}
        for language in ("en", "zh"):
            text = (FILES / f"words_{language}.js").read_text(encoding="utf-8")
            words[language] = dict(re.findall(r'^  (\w+): "(.*)",$', text, re.MULTILINE))
            assert len(words[language]) == len(text.splitlines()) - 2
        assert words["en"].keys() == words["zh"].keys()
        for name, english in words["en"].items():
            placeholders = re.findall(r"\{\w+\}", english)
            assert sorted(placeholders) == sorted(re.findall(r"\{\w+\}", words["zh"][name])), name
        untranslated = {name for name in words["en"] if not CHINESE.search(words["zh"][name])}
        assert untranslated == {"api", "title", "language", "language_label"}
        page = (FILES / "index.html").read_text(encoding="utf-8")
        used = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', page))
        for file in FILES.glob("*.js"):
            used |= set(re.findall(r'\bt\("(\w+)"', file.read_text(encoding="utf-8")))
        assert used <= words["en"].keys()


class TestPhone:
    def test_one_column_without_horizontal_scrolling(self, site: Site, open_tab: OpenTab) -> None:
        tab = open_tab(site, **PHONE)
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        tab.wait_for_function(
            "() => { const rect = id => document.getElementById(id).getBoundingClientRect();"
            " return rect('result').top >= rect('viewer').bottom }"
        )
        tab.locator(".box").nth(1).tap()
        expect(tab.locator(".block").nth(1)).to_have_class("block located highlighted")
        expect(tab.locator(".block").nth(1)).to_be_in_viewport()


class TestKeyboard:
    def test_every_control_can_be_reached_with_the_tab_key(self, tab: Tab) -> None:
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        tab.locator("#language").focus()
        reached = []
        for _ in range(40):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("() => document.activeElement.id || document.activeElement.classList[0]"))
            if reached[-1] == "language":
                break
        for name in "prompt mode read box page-button other tab-markdown copy panel block".split():
            assert name in reached, (name, reached)
        assert reached[-1] == "language", "the focus should come round to where it started"
        for name in "box page-button block".split():
            assert reached.count(name) == 1, f"the list of {name} elements should be one tab stop"

    def test_arrow_keys_switch_tabs(self, tab: Tab) -> None:
        choose_file(tab, RECEIPT)
        wait_until_read(tab)
        tab.locator("#tab-markdown").focus()
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#tab-raw")).to_be_focused()
        expect(tab.locator("#raw")).to_be_visible()
        expect(tab.locator("#panel")).to_have_attribute("aria-labelledby", "tab-raw")

    def test_the_focus_is_visible(self, tab: Tab) -> None:
        tab.keyboard.press("Tab")
        expect(tab.locator(".skip")).to_be_focused()
        tab.keyboard.press("Tab")
        width = tab.evaluate("() => getComputedStyle(document.activeElement).outlineWidth")
        assert width == "2px"


class TestAxe:
    @pytest.mark.parametrize("color_scheme", ["light", "dark"])
    @pytest.mark.parametrize("size", ["desktop", "phone"])
    def test_no_serious_violations(self, site: Site, open_tab: OpenTab, color_scheme: str, size: str) -> None:
        tab = open_tab(site, color_scheme=color_scheme, bypass_csp=True, **(PHONE if size == "phone" else {}))
        self.check(tab)
        choose_file(tab, PAPERS)
        wait_until_read(tab)
        self.check(tab)
        tab.locator("summary", has_text="Download").click()
        tab.get_by_role("tab", name="Raw text").click()
        self.check(tab)

    def test_no_serious_violations_in_the_chinese_key_form(self, site_with_key: Site, open_tab: OpenTab) -> None:
        tab = open_tab(site_with_key, bypass_csp=True, locale="zh-CN")
        expect(tab.get_by_role("alert")).to_be_visible()
        self.check(tab)

    def check(self, tab: Tab) -> None:
        violations = Axe().run(tab).response["violations"]
        serious = [
            (each["id"], [node["html"][:120] for node in each["nodes"]])
            for each in violations
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
