"""Two languages, small windows, light and dark, keyboards and screen readers."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from ocr_server.dialects.service.web_page import FILES
from tests.ui.browser import PAPERS, RECEIPT, give, wait_read
from tests.ui.conftest import Opens, Site

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
CHINESE = re.compile("[一-鿿]")
DONE_IN_CHINESE = re.compile("全部识别完毕")


class TestLanguages:
    @pytest.mark.parametrize("locale", ["zh-CN", "zh-TW", "zh"])
    def test_a_chinese_browser_gets_chinese(self, site: Site, open_tab: Opens, locale: str) -> None:
        tab = open_tab(site, locale=locale)
        expect(tab.locator("html")).to_have_attribute("lang", "zh-Hans")
        expect(tab.locator("#drop")).to_contain_text("把页面拖到这里")

    def test_others_get_english_and_can_switch(self, site: Site, open_tab: Opens) -> None:
        tab = open_tab(site, locale="fr-FR")
        expect(tab.locator("html")).to_have_attribute("lang", "en")
        give(tab, PAPERS)
        wait_read(tab)
        tab.locator("#language").click()
        expect(tab.locator("#status")).to_have_text(DONE_IN_CHINESE)
        expect(tab.locator("#strip button").first).to_have_attribute("aria-label", "第 1 页：已识别")
        tab.reload()
        expect(tab.locator("#read")).to_have_text("识别")
        tab.locator("#language").click()
        expect(tab.locator("#read")).to_have_text("Read")

    def test_every_word_is_there_in_both(self) -> None:
        words = {}
        for language in ("en", "zh"):
            text = (FILES / f"words_{language}.js").read_text(encoding="utf-8")
            words[language] = dict(re.findall(r'^  (\w+): "(.*)",$', text, re.MULTILINE))
            assert len(words[language]) == len(text.splitlines()) - 2
        assert words["en"].keys() == words["zh"].keys()
        for name, english in words["en"].items():
            holes = re.findall(r"\{\w+\}", english)
            assert sorted(holes) == sorted(re.findall(r"\{\w+\}", words["zh"][name])), name
        same = {name for name in words["en"] if not CHINESE.search(words["zh"][name])}
        assert same == {"api", "title", "language", "language_label"}
        page = (FILES / "index.html").read_text(encoding="utf-8")
        used = set(re.findall(r'data-(?:text|label|hint)="(\w+)"', page))
        for file in FILES.glob("*.js"):
            used |= set(re.findall(r'\bt\("(\w+)"', file.read_text(encoding="utf-8")))
        assert used <= words["en"].keys()


class TestPhone:
    def test_one_column_and_nothing_sticks_out(self, site: Site, open_tab: Opens) -> None:
        tab = open_tab(site, **PHONE)
        give(tab, PAPERS)
        wait_read(tab)
        assert tab.evaluate("() => document.documentElement.scrollWidth") <= 390
        tab.wait_for_function(
            "() => { const at = id => document.getElementById(id).getBoundingClientRect();"
            " return at('result').top >= at('viewer').bottom }"
        )
        tab.locator(".box").nth(1).tap()
        expect(tab.locator(".block").nth(1)).to_have_class("block located lit")
        expect(tab.locator(".block").nth(1)).to_be_in_viewport()


class TestKeyboard:
    def test_everything_can_be_reached_and_used(self, tab: Tab) -> None:
        give(tab, PAPERS)
        wait_read(tab)
        tab.locator("#language").focus()
        reached = []
        for _ in range(40):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("() => document.activeElement.id || document.activeElement.classList[0]"))
            if reached[-1] == "language":
                break
        for name in "prompt mode read box leaf other tab-markdown copy panel block".split():
            assert name in reached, (name, reached)
        assert len(reached) < 30, "lists are one stop each"

    def test_tabs_go_by_arrow_keys(self, tab: Tab) -> None:
        give(tab, RECEIPT)
        wait_read(tab)
        tab.locator("#tab-markdown").focus()
        tab.keyboard.press("ArrowRight")
        expect(tab.locator("#tab-raw")).to_be_focused()
        expect(tab.locator("#raw")).to_be_visible()
        expect(tab.locator("#panel")).to_have_attribute("aria-labelledby", "tab-raw")

    def test_the_focus_is_seen(self, tab: Tab) -> None:
        tab.keyboard.press("Tab")
        expect(tab.locator(".skip")).to_be_focused()
        tab.keyboard.press("Tab")
        width = tab.evaluate("() => getComputedStyle(document.activeElement).outlineWidth")
        assert width == "2px"


class TestAxe:
    @pytest.mark.parametrize("look", ["light", "dark"])
    @pytest.mark.parametrize("size", ["desktop", "phone"])
    def test_it_finds_nothing_serious(self, site: Site, open_tab: Opens, look: str, size: str) -> None:
        tab = open_tab(site, color_scheme=look, bypass_csp=True, **(PHONE if size == "phone" else {}))
        self.check(tab)
        give(tab, PAPERS)
        wait_read(tab)
        self.check(tab)
        tab.locator("summary", has_text="Download").click()
        tab.get_by_role("tab", name="Raw text").click()
        self.check(tab)

    def test_nor_where_a_key_is_asked_for_in_chinese(self, locked: Site, open_tab: Opens) -> None:
        tab = open_tab(locked, bypass_csp=True, locale="zh-CN")
        expect(tab.get_by_role("alert")).to_be_visible()
        self.check(tab)

    def check(self, tab: Tab) -> None:
        found = Axe().run(tab).response["violations"]
        grave = [
            (each["id"], [node["html"][:120] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert grave == []
