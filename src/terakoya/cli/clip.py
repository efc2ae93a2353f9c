"""terakoya train and show, for recipes of captions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from terakoya.cli import kept
from terakoya.cli import show as screen
from terakoya.train.clip import ClipRecipe, prepare


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train both encoders to the end of the recipe, or on from where the run stands."""
    if (made := kept.fit(ClipRecipe, prepare, recipe, overrides, folder)) is not None:
        seen = made.look(None)
        screen.console.print(
            f"held out: {seen['heldout_image_to_text']:.1%} of pictures find their caption among all, "
            f"{seen['heldout_text_to_image']:.1%} of captions a picture "
            f"(always the commonest caption: {seen['heldout_commonest']:.1%})"
        )


show = partial(kept.show, ClipRecipe)
