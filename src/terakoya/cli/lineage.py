"""terakoya lineage."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from terakoya.zoo import draw


def lineage(args: argparse.Namespace) -> None:
    """Draw the tree, or describe one system."""
    if args.html:
        Path(args.html).write_text(draw.html(args.lang), encoding="utf-8")
        text = f"written: {args.html}"
    elif args.name:
        text = draw.describe(args.name, args.lang)
    else:
        text = draw.mermaid() if args.mermaid else draw.tree(args.lang)
    sys.stdout.write(text.rstrip("\n") + "\n")
