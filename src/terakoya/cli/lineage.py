"""terakoya lineage."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from terakoya.zoo import draw
from terakoya.zoo.files import replacing


def lineage(args: argparse.Namespace) -> None:
    """Draw the tree, or describe one system."""
    if args.html:
        with replacing(Path(args.html)) as file:
            file.write(draw.html(args.lang).encode())
        text = f"written: {args.html}"
    elif args.name:
        text = draw.describe(args.name, args.lang)
    else:
        text = draw.mermaid() if args.mermaid else draw.tree(args.lang)
    sys.stdout.write(text.rstrip("\n") + "\n")
