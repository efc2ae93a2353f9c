"""Cut short exchanges out of long conversations: a question of one, the answer of the other, a row each.

python bench/exchanges.py ../shared/data/sft/ja_persona_chat.jsonl.zst exchanges.jsonl --count 1200
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from terakoya.tune.rows import rows

LENGTHS = range(8, 41)  # characters of a question, and of an answer


def exchange(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """Return the first question that is answered at a length that tells something."""
    said = row["messages"]
    for asked, answered in pairwise(said):
        if (
            (asked["role"], answered["role"]) == ("user", "assistant")
            and asked["content"].endswith(("？", "?"))
            and len(asked["content"]) in LENGTHS
            and len(answered["content"]) in LENGTHS
        ):
            return [asked, answered]
    return None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    p.add_argument("source", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--count", type=int, default=1000)
    p.add_argument("--skip", type=int, default=0)
    args = p.parse_args()
    found = [e for _, row in rows(args.source) if (e := exchange(dict(row)))]
    chosen = found[args.skip : args.skip + args.count]
    lines = (json.dumps({"messages": e}, ensure_ascii=False) + "\n" for e in chosen)
    args.out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(chosen):,} of {len(found):,} exchanges in {args.out}")


if __name__ == "__main__":
    main()
