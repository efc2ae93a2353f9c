"""Where words may be cut before pieces are learnt: our pattern, the known ones, and which foreign ones are safe."""

from __future__ import annotations

from terakoya.errors import TerakoyaError

# Ours: Japanese has no spaces, so the script changes are the joints; BPE never learns a piece across 漢字|かな|カナ.
# Digits stand alone: place value stays readable, no left-to-right groups that misalign 1234 and 234, no slots spent
# on hundreds of numbers. Latin and other words take the one space before them; a space run before a word (code
# indentation) is one piece less its last space; newlines close what stands before them (。\n and ):\n are pieces).
_HAN = r"\p{Han}〆"
_HIRAGANA = r"\p{Hiragana}ー"
_KATAKANA = r"\p{Katakana}ーｰﾞﾟ"
TERAKOYA = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)(?!\p{L})",
        rf"[{_HAN}][{_HAN}\p{{M}}]*",
        rf"[{_HIRAGANA}][{_HIRAGANA}\p{{M}}]*",
        rf"[{_KATAKANA}][{_KATAKANA}\p{{M}}]*",
        r" ?[\p{L}\p{M}&&[^\p{Han}\p{Hiragana}\p{Katakana}ーｰﾞﾟ〆]]+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_LONGEST = 4096  # characters; the longest pattern of a published tokenizer is under 1,000


def check_pattern(place: str, pattern: str) -> None:
    """Refuse a foreign pattern whose matching time can explode: an unbounded repeat over a group that repeats or forks.

    A tokenizer file is data from strangers, and the regex engine behind it does backtrack (a 24 character text can
    hold it for a second, and it then panics).
    """
    if len(pattern) > _LONGEST:
        raise TerakoyaError(place, f"holds a pattern of {len(pattern)} characters; allowed: at most {_LONGEST}")
    if _explodes(pattern):
        raise TerakoyaError(
            place,
            "holds a pattern that repeats a group of repeats or alternatives; its matching time can explode",
            given=pattern[:80],
        )


def _explodes(pattern: str) -> bool:
    """Scan a pattern once; True when `( … + | * … )` itself is followed by `+`, `*` or `{n,}`."""
    stack: list[bool] = [False]  # per open group: does it hold an unbounded repeat or an alternative?
    i = 0
    closed: bool | None = None  # the group that just closed, if the last thing was one
    while i < len(pattern):
        c = pattern[i]
        was, closed = closed, None
        if c == "\\":
            i += 2
            if pattern[i - 1 : i] in ("p", "P") and pattern[i : i + 1] == "{":
                i = _after(pattern, i, "}")
            continue
        if c == "[":
            i = _after_class(pattern, i)
            continue
        if c == "(":
            stack.append(False)
        elif c == ")" and len(stack) > 1:
            closed = stack.pop()
            stack[-1] = stack[-1] or closed
        elif c == "|":
            if len(stack) > 1:
                stack[-1] = True
        elif c in "*+" or (
            c == "{" and "," in pattern[i : (end := _after(pattern, i, "}"))] and pattern[end - 2] == ","
        ):
            if was:
                return True
            stack[-1] = True
        i += 1
    return False


def _after(pattern: str, at: int, mark: str) -> int:
    found = pattern.find(mark, at)
    return len(pattern) if found < 0 else found + 1


def _after_class(pattern: str, at: int) -> int:
    """The index after the bracketed class that opens at `at`; classes nest (`[a&&[^b]]`)."""
    depth, i = 0, at
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 1
        elif pattern[i] == "[":
            depth += 1
        elif pattern[i] == "]":
            depth -= 1
            if depth == 0:
                return i + 1
        i += 1
    return len(pattern)
