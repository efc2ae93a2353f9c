"""terakoya tune, for recipes with a head."""

from __future__ import annotations

from pathlib import Path

from terakoya import device
from terakoya.cli import show as screen
from terakoya.cli.folder import kept_if_whole
from terakoya.models import open_model
from terakoya.train.run import Run
from terakoya.tune.heads import recipe
from terakoya.tune.heads.recipe import Fit
from terakoya.tune.heads.run import Fitter, prepare


def fit(file: Path, folder: Path | None, overrides: list[str], named: str | None) -> None:
    """Teach a head, or go on from where the run stands; then show how right it is, before and after."""
    asked = recipe.load(file, overrides)
    folder = Path(named) if named else folder or Path("runs") / file.stem
    fitter = start(folder, asked)
    for note in fitter.work.notes:
        screen.console.print(note, markup=False)
    learns = sum(p.numel() for p in fitter.model.parameters() if p.requires_grad)
    screen.console.print(
        f"model: {asked.model}, {learns / 1e6:.2f} M parameters learn; {fitter.steps:,} steps "
        f"({fitter.steps / fitter.work.steps_per_epoch:.1f} epochs); {fitter.place.name} {fitter.place.precision}",
        markup=False,
    )
    before = fitter.look(None)
    with screen.progress(fitter.steps, fitter.start, device.measured_peak(fitter.place)) as watch:
        done = fitter.train(watch)
    if not done:
        screen.console.print(f"stopped; continue with: terakoya tune {folder}", markup=False)
        return
    after = fitter.look(None)
    rows = [[name, f"{before[name]:.4f}", f"{after[name]:.4f}"] for name in before]
    screen.table("held-out examples", ["", "before", "after"], rows)
    screen.console.print(f"everything is in {folder}", markup=False)


def start(folder: Path, asked: Fit) -> Fitter:
    """Open the model and the examples; a folder begun here goes away again where the recipe is at fault."""
    device.choose(asked.device, asked.precision)
    with kept_if_whole(folder):
        return prepare(Run.create(folder, asked), asked, open_model(asked.model))
