"""terakoya train and show, for recipes of captions."""

from __future__ import annotations

from pathlib import Path

from terakoya import config
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.train import clip
from terakoya.train.run import Run


def load(recipe: Path, overrides: list[str]) -> clip.ClipRecipe:
    """Read a recipe of captions."""
    return config.assign(config.load_file(clip.ClipRecipe, recipe), overrides)


def train(recipe: Path, overrides: list[str], folder: Path) -> None:
    """Train both encoders to the end of the recipe, or on from where the run stands."""
    asked = load(recipe, overrides)
    with kept_if_whole(folder):
        made = clip.prepare(Run.create(folder, asked), asked, lambda text: screen.console.print(text, markup=False))
    count = sum(p.numel() for p in made.model.parameters())
    screen.console.print(f"model: clip, {count / 1e6:.1f} M parameters; {made.steps:,} steps")
    with screen.progress(made.steps, made.start, 1.0) as watch:
        done = made.train(watch)
    if done:
        seen = made.look(None)
        screen.console.print(
            f"held out: {seen['heldout_image_to_text']:.1%} of pictures find their caption among all, "
            f"{seen['heldout_text_to_image']:.1%} of captions a picture "
            f"(always the commonest caption: {seen['heldout_commonest']:.1%})"
        )
    screen.console.print(f"everything is in {folder}" if done else f"stopped; continue: terakoya train {folder}")


def show(recipe: Path, overrides: list[str]) -> None:
    """Print the recipe as TOML."""
    screen.console.out(config.dump(load(recipe, overrides)).rstrip(), highlight=False)
