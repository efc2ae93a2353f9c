"""Take the pictures of the page that docs/serve.md shows: python -m tests.serve.pictures FOLDER"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from terakoya.models import open_model
from terakoya.serve.settings import Limits
from terakoya.serve.shelf import Shelf, named
from tests.serve.browser import Page, browser
from tests.serve.conftest import listening

IDLE = "document.querySelector('#stop').hidden"
MATHS = r"""<think>公式を思い出す。判別式も書いておくとよい。</think>二次方程式 $ax^2 + bx + c = 0$ の解は

$$x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$$

で、$b^2 - 4ac$ の符号で分かれます。

| $b^2 - 4ac$ | 実数の解 |
|---|---:|
| 正 | 2 |
| 0 | 1 |
| 負 | 0 |

```python
def roots(a: float, b: float, c: float) -> list[float]:
    d = b * b - 4 * a * c  # 判別式
    return [] if d < 0 else sorted({(-b - d**0.5) / (2 * a), (-b + d**0.5) / (2 * a)})
```
"""


def talk(page: Page, question: str, answer: str) -> None:
    """Put a conversation into the browser, as if it had been had."""
    thought, _, said = answer.removeprefix("<think>").partition("</think>")
    script = f"""(async () => {{
      const store = await import('/page/store.js');
      const made = store.begin('chat', {{}});
      const asked = store.add(made, null, 'user', {json.dumps(question)});
      const told = store.add(made, asked.id, 'assistant', {json.dumps(said)});
      Object.assign(told, {{ model: 'smollm2-135m-instruct', thought: {json.dumps(thought)} }});
      store.save(made);
      sessionStorage.setItem('talk', made.id);
    }})()"""
    page.run(script)


def main(folder: Path) -> None:
    """Drive the page through its scenes."""
    shelf = Shelf(named(["smollm2-135m-instruct"], open_model), Limits(), memory_bytes=64 << 20)
    with listening(shelf) as running, browser("ja") as page:
        page.size(1280, 820)
        page.go(running.url + "/")
        talk(page, "二次方程式の解の公式を教えてください。", MATHS)
        page.go(running.url + "/")
        page.until("document.querySelectorAll('article').length === 2")
        (folder / "serve-maths.png").write_bytes(page.picture())
        page.dark(True)
        page.size(360, 720, 1.25)
        page.until("document.querySelector('#side').getBoundingClientRect().right <= 0")
        (folder / "serve-maths-mobile.png").write_bytes(page.picture())
        page.dark(False)
        page.size(1280, 820)
        page.run("localStorage.setItem('settings', JSON.stringify({max_tokens: 60, seed: '4', temperature: 0.6}))")
        page.run("sessionStorage.clear()")
        page.go(running.url + "/")
        page.click("#new-note")
        page.type("Once upon a time, in a small village school,")
        page.click("#send")
        page.until(f"document.querySelector('#note-text').value.length > 60 && {IDLE}")
        (folder / "serve-notebook.png").write_bytes(page.picture())
        print(page.complaints())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
