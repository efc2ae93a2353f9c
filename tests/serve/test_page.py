"""The page in a real browser: what people do with it, and what it must not do."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.serve.browser import Page, browser, found
from tests.serve.conftest import Running, slow

pytestmark = pytest.mark.skipif(found() is None, reason="no Chromium here")

IDLE = "document.querySelector('#stop').hidden"
ANSWERS = "document.querySelectorAll('article.assistant').length"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(chromium: Page, running: Running) -> Page:
    """The page as at the first visit, short answers."""
    chromium.size(1200, 800)
    chromium.dark(False)
    chromium.call("Page.navigate", url=f"{running.url}/page/icon.svg")
    chromium.until("location.pathname === '/page/icon.svg'")
    chromium.run("localStorage.clear(); sessionStorage.clear()")
    chromium.run("localStorage.setItem('settings', JSON.stringify({max_tokens: 12, seed: '1'}))")
    chromium.events.clear()
    chromium.go(running.url + "/")
    return chromium


def say(page: Page, text: str) -> None:
    before = page.run(ANSWERS)
    page.run("document.querySelector('#input').focus()")
    page.type(text)
    page.key("Enter", 13)
    page.until(f"{ANSWERS} > {before} && {IDLE}")


def test_a_talk(page: Page, running: Running) -> None:
    """Send, see the answer and what it took, edit, regenerate, go between versions, reload."""
    say(page, "寺子屋とは？")
    answer = page.run("document.querySelector('article.assistant .body').innerText")
    assert "12 tokens" in page.run("document.querySelector('article.assistant .stats').innerText")
    assert page.run("document.querySelector('#meter').getAttribute('aria-valuenow') > 12")
    page.click("article.assistant [aria-label=Regenerate]")
    page.until(f"document.querySelector('article.assistant .tools').innerText.includes('2/2') && {IDLE}")
    page.click("article.user [aria-label=Edit]")
    page.run("document.querySelector('article textarea').value = 'other'")
    page.click("article .send")
    page.until(f"document.querySelector('article.user .tools').innerText.includes('2/2') && {IDLE}")
    page.click("article.user [aria-label='Earlier version']")
    page.until("document.querySelector('article.user .body').innerText === '寺子屋とは？'")
    page.go(running.url + "/")
    page.until("document.querySelector('article.user .body')?.innerText === '寺子屋とは？'")
    assert page.run("document.querySelector('#list .open').innerText") == "寺子屋とは？"
    page.click("article.assistant [aria-label='Earlier version']")
    page.until(f"document.querySelector('article.assistant .body').innerText === {json.dumps(answer)}")
    assert page.complaints() == []
    assert all(url.startswith((running.url, "data:", "about:")) for url in page.asked())


def test_stop(page: Page, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = running.shelf.open["tiny"].engine
    monkeypatch.setattr(engine, "_compute", engine._compute)  # as it was, at the end
    slow(engine, 0.1)
    page.run("localStorage.setItem('settings', JSON.stringify({max_tokens: 8000, stops: ''}))")
    page.go(running.url + "/")
    page.run("document.querySelector('#input').focus()")
    page.type("long")
    page.key("Enter", 13)
    page.until("!document.querySelector('#stop').hidden")
    page.key("Escape", 27)
    page.until(IDLE)
    running.idle()


def test_enter_that_ends_a_conversion_does_not_send(page: Page) -> None:
    page.run("document.querySelector('#input').focus()")
    page.call("Input.imeSetComposition", text="てらこや", selectionStart=4, selectionEnd=4)
    page.run(
        "document.querySelector('#input').dispatchEvent(new KeyboardEvent('keydown', "
        "{key: 'Enter', keyCode: 229, isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.call("Input.dispatchKeyEvent", type="rawKeyDown", key="Enter", windowsVirtualKeyCode=229)
    assert page.run("document.querySelectorAll('article').length") == 0
    page.call("Input.insertText", text="寺子屋")
    assert page.run("document.querySelector('#input').value") == "寺子屋"
    page.key("Enter", 13)
    page.until(f"{ANSWERS} === 1 && {IDLE}")


def test_languages_themes_and_a_narrow_screen(page: Page) -> None:
    assert page.run("document.documentElement.lang") == "en"
    page.click("#language")
    assert page.run("document.querySelector('#send').innerText") == "送信"
    assert page.run("document.documentElement.lang") == "ja"
    light = page.run("getComputedStyle(document.body).backgroundColor")
    page.dark(True)
    assert page.run("getComputedStyle(document.body).backgroundColor") != light
    page.click("#theme")
    assert page.run("getComputedStyle(document.body).backgroundColor") == light
    page.size(360, 640)
    say(page, "狭い画面\n" + "a" * 60)
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.click("#setup-open")
    assert page.run("document.documentElement.scrollWidth") <= 360
    page.click("#setup-close")
    page.click("#side-open")
    page.until("document.querySelector('#side').getBoundingClientRect().left >= 0")


def test_everything_has_a_name_for_screen_readers(page: Page) -> None:
    say(page, "x")
    page.click("#setup-open")
    nameless = page.run(
        "[...document.querySelectorAll('button, input:not([type=file]), textarea, select')].filter(e => !(e.ariaLabel "
        "|| e.labels?.length || e.innerText.trim())).map(e => e.outerHTML)"
    )
    assert nameless == []


def test_probabilities(page: Page) -> None:
    page.click("#setup-open")
    page.click("#set-probabilities")
    say(page, "x")
    pieces = page.run("document.querySelectorAll('article.assistant .tokens span').length")
    assert 0 < pieces <= 12
    page.run("document.querySelector('article.assistant .tokens span').focus()")
    assert page.run("document.querySelectorAll('#tip tr').length") >= 5


def test_a_notebook(page: Page) -> None:
    page.run("document.querySelector('#model').value = 'base'")
    page.run("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.click("#new-note")
    page.type("むかしむかし")
    page.click("#send")
    page.until(f"document.querySelector('#note-text').value.length > 6 && {IDLE}")
    page.click("#undo")
    assert page.run("document.querySelector('#note-text').value") == "むかしむかし"
    page.click("#language")
    lines = "getComputedStyle(document.querySelector('#send')).whiteSpace"
    assert page.run(lines) == "nowrap"  # 続きを書く stays one word


def test_export_and_import(page: Page) -> None:
    say(page, "保存")
    script = """(async () => {
      const store = await import('/page/store.js');
      const talk = store.load(sessionStorage.getItem('talk'));
      const back = store.fromFile(JSON.stringify(talk));
      const texts = (x) => store.path(x).map((n) => n.role + n.text).join();
      const one = (parent, role) => JSON.stringify({ ...talk, nodes: { a: { id: 'a', parent, role, text: '' } } });
      const bad = ['{}', '[]', one('a', 'user'), one(null, 'system')];
      const refused = bad.filter((b) => { try { store.fromFile(b); } catch { return true; } });
      return [texts(back) === texts(talk), store.toMarkdown(talk).includes('保存'), refused.length];
    })()"""
    assert page.run(script) == [True, True, 4]


MARKDOWN = [
    ("a **b** *c* `d`", "<p>a <strong>b</strong> <em>c</em> <code>d</code></p>"),
    ("**日本語**です。*強調*も", "<p><strong>日本語</strong>です。<em>強調</em>も</p>"),
    ("2 * 3 * 4 and snake_case_name", "<p>2 * 3 * 4 and snake_case_name</p>"),
    ("<b>x</b><img src=x onerror=y>", "<p>&lt;b&gt;x&lt;/b&gt;&lt;img src=x onerror=y&gt;</p>"),
    ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"),
    ("# H\n- a\n- b\n  1. c\n", "<h3>H</h3><ul><li>a</li><li>b<ol><li>c</li></ol></li></ul>"),
    ("> q\n> r", "<blockquote><p>q\nr</p></blockquote>"),
    ("---", "<hr>"),
    ("a\n\nb", "<p>a</p><p>b</p>"),
    ("~~x~~ \\*y\\*", "<p><del>x</del> *y*</p>"),
    ("it costs $5 and $6", "<p>it costs $5 and $6</p>"),
]  # fmt: skip


def test_markdown_becomes_elements_and_never_more(page: Page) -> None:
    for text, wanted in MARKDOWN:
        script = (
            "(async () => { const m = await import('/page/markdown.js'); const e = document.createElement('div');"
            f" e.append(m.markdown({json.dumps(text)})); return e.innerHTML; }})()"
        )
        assert page.run(script) == wanted
    pieces = (
        "(async () => { const m = await import('/page/markdown.js'); const e = document.createElement('div');"
        " e.append(m.markdown(%s)); return [...e.querySelectorAll('*')].map(x => x.tagName.toLowerCase()); })()"
    )
    assert "img" not in page.run(pieces % json.dumps("![a](https://evil.example/x.png) https://a.example/b"))
    assert page.run(pieces % json.dumps("$$\\frac{a}{b^2} = \\sqrt{x}$$"))[0] == "math"
    assert "mfrac" in page.run(pieces % json.dumps("so $\\frac{1}{2}$ is"))
    assert "table" in page.run(pieces % json.dumps("|a|b|\n|--|--:|\n|1|2|"))
    assert page.run(pieces % json.dumps("```py\nx = 1"))[:2] == ["div", "div"]
    for text in (
        "[" * 3000,
        "*" * 3000,
        ">" * 3000,
        "- " * 3000,
        "`" * 3001,
        "$" * 999,
        "$$" + "{" * 3000,
        "(" * 2000 + "[a](" * 500,
    ):
        page.run(pieces % json.dumps(text))


def test_the_schema_is_shown(page: Page, running: Running) -> None:
    page.call("Page.navigate", url=f"{running.url}/docs")
    page.until("document.body?.innerText.includes('/v1/chat/completions')")
