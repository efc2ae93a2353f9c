"""The same questions to the model before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terakoya.engine.generate import complete
from terakoya.engine.sampling import Sampling
from terakoya.model.model import Model
from terakoya.tokenizer import Tokenizer, render
from terakoya.tune.work import Prompt

KANA_KANJI = (
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x323AF),
)


def replies(
    model: Model, tokenizer: Tokenizer, prompts: Sequence[Prompt], *, tokens: int, template: str | None = None
) -> list[dict[str, Any]]:
    """Answer each prompt greedily; prompts that leave no room in the context are passed over."""
    out = []
    for prompt in prompts:
        ids = render(tokenizer, prompt, template=template, answer=True).ids
        if len(ids) + tokens >= model.spec.context:
            continue
        answer = complete(model, tokenizer, ids, Sampling(temperature=0, max_tokens=tokens))
        out.append(
            {
                "prompt": prompt[-1].content,
                "answer": answer.text,
                "finish": answer.finish,
                "japanese": japanese(answer.text),
            }
        )
    return out


def japanese(text: str) -> float:
    """Share of the characters that are kana or kanji; spaces, ASCII punctuation and digits are not counted."""
    counted = [c for c in text if c.isalpha()]
    found = [c for c in counted if any(a <= ord(c) <= b for a, b in KANA_KANJI)]
    return len(found) / max(len(counted), 1)
