"""Text from hostile pages can't run scripts, load anything or change the web page."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import expect

from tests.ocr_server.output.answers import marker
from tests.ui.browser import RECEIPT, choose_file, each_page, wait_until_read
from tests.ui.conftest import OpenTab, Site

pytestmark = pytest.mark.browser

ATTACKS = {
    "script": "<script>window.hit = 1</script>",
    "script in a table": "<table><tr><td><script>window.hit = 1</script></td></tr></table>",
    "handler": '<img src="nothing.png" onerror="window.hit = 1">',
    "handler on what is allowed": '<p onclick="window.hit = 1" onmouseover="window.hit = 1">Press</p>',
    "link": "[Press](javascript:window.hit=1) <javascript:window.hit=1>",
    "link in html": '<a href="javascript:window.hit=1">Press</a>',
    "remote link": '<a href="https://example.com/" target="_blank">Press</a> https://example.com/',
    "remote picture": "![seen](https://example.com/seen.png) <img src=//example.com/seen.png>",
    "remote in a style": '<p style="background: url(https://example.com/seen.png)">Press</p>',
    "style": "<style>body { display: none }</style>",
    "stylesheet": '<link rel="stylesheet" href="https://example.com/a.css">',
    "form": '<form action="https://example.com/"><input name="key"><button>Press</button></form>',
    "frame": '<iframe src="https://example.com/"></iframe><iframe srcdoc="<script>parent.hit=1</script>"></iframe>',
    "object": '<object data="https://example.com/"></object><embed src="https://example.com/">',
    "base": '<base href="https://example.com/">',
    "refresh": '<meta http-equiv="refresh" content="0; url=https://example.com/">',
    "svg": '<svg onload="window.hit = 1"><a xlink:href="javascript:window.hit=1"><text>Press</text></a></svg>',
    "mathml": '<math href="javascript:window.hit=1"><mi xlink:href="javascript:window.hit=1">Press</mi></math>',
    "mutation": '<math><mtext><table><mglyph><style><img src=x onerror="window.hit=1"></style></mglyph></table></math>',
    "formula": r"\(\href{javascript:window.hit=1}{Press}\)",
    "formula with a picture": r"\(\url{https://example.com} \includegraphics{https://example.com/a.png}\)",
    "formula with markup": r'\[\text{<img src=x onerror="window.hit=1">}\]',
    "our own names": '<div id="error" class="warning">Send your key</div><div id="key-field" name="key">Press</div>',
    "clobbering": '<form id="documentElement"></form><img name="getElementById">',
    "video": '<video src="https://example.com/a.mp4" autoplay></video><audio src="https://example.com/a.mp3">',
    "label": marker('"><img src=x onerror="window.hit=1">', (1, 1, 500, 500)),
    "code": "```html\n<script>window.hit = 1</script>\n```",
}
FIND_FORBIDDEN = """() => {
    const tags = "A,IMG,SCRIPT,STYLE,LINK,FORM,INPUT,BUTTON,IFRAME,OBJECT,EMBED,BASE,META,SVG,VIDEO,AUDIO".split(",");
    return [...document.querySelectorAll("#blocks .block *")].flatMap((each) => [
        ...(tags.includes(each.tagName.toUpperCase()) ? [each.outerHTML] : []),
        ...[...each.attributes].filter((one) => /^on|^(style|id|class|name|src|href|xlink:href)$/.test(one.name))
            .map((one) => each.outerHTML),
    ]);
}"""


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_neutralised(site: Site, tab: Tab, attack: str) -> None:
    site.engine.script = each_page(f"Before\n\n{attack}\n\nAfter")
    choose_file(tab, RECEIPT)
    wait_until_read(tab)
    expect(tab.locator("#blocks")).to_contain_text("Before")
    assert tab.evaluate(FIND_FORBIDDEN) == []
    press = tab.locator("#blocks").get_by_text("Press")
    if press.count():
        press.first.click()
    assert tab.evaluate("() => window.hit") is None
    assert tab.url == f"{site.url}/ui/"
    assert tab.locator("#error").count() == 1


def test_the_content_security_policy_blocks_what_the_sanitiser_would_miss(site: Site, open_tab: OpenTab) -> None:
    tab = open_tab(site)
    blocked = tab.evaluate(
        """() => new Promise((resolve) => {
            const blocked = new Set();
            document.addEventListener("securitypolicyviolation", (event) => {
                blocked.add(event.effectiveDirective);
                if (blocked.size === 3) resolve([...blocked].sort());
            });
            const container = document.body.appendChild(document.createElement("div"));
            container.innerHTML =
                '<img src="nothing.png" onerror="window.hit = 1"><p id="styled" style="color: red">x</p>';
            const script = document.createElement("script");
            script.textContent = "window.hit = 1";
            container.append(script);
        })"""
    )
    assert blocked == ["script-src-attr", "script-src-elem", "style-src-attr"]
    assert tab.evaluate("() => window.hit") is None
    assert tab.evaluate("() => getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"


def test_harmless_markup_is_kept(site: Site, tab: Tab) -> None:
    """Tables with merged cells, emphasis, lists, code, centred captions."""
    site.engine.script = each_page(
        "1. one\n2. **two**\n\n`code`\n\n<center>Figure 1</center>\n\n"
        '<table><tr><td colspan="2">wide</td></tr><tr><td>a<sup>2</sup></td><td>b</td></tr></table>\n'
    )
    choose_file(tab, RECEIPT)
    wait_until_read(tab)
    for what in ("ol li strong", "code", "center", "td[colspan='2']", "td sup"):
        expect(tab.locator(f"#blocks {what}")).to_have_count(1)
