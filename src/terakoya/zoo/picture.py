"""Pictures from files, prepared as preprocessor_config.json says (CLIP's image processor). Needs Pillow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terakoya.errors import MissingExtra, TerakoyaError

FILES = ("preprocessor_config.json", "processor_config.json")
KINDS = ("PNG", "JPEG")
LARGEST = 64_000_000  # pixels of a picture
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, per channel
KNOWN = {"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"}


@dataclass(frozen=True)
class Preparation:
    """What becomes of a picture: its shorter side made `edge` long, or all of it `size`; cut, scaled, centred."""

    edge: int | None = 336
    size: tuple[int, int] | None = None  # height, width: resized to just this, whatever its shape
    crop: tuple[int, int] | None = (336, 336)  # height, width
    resample: int = 3  # Pillow's number: 0 nearest, 2 bilinear, 3 bicubic
    scale: float | None = 1 / 255
    mean: tuple[float, float, float] | None = MEAN
    spread: tuple[float, float, float] = SPREAD


def preparation(folder: Path, image: int) -> Preparation:
    """Read how a model's folder wants its pictures; without such a file: as CLIP, `image` pixels wide and high."""
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        return Preparation(image, None, (image, image))
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        said = said.get("image_processor", said)
        found = _read(said, str(file))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TerakoyaError(str(file), f"cannot be read ({type(error).__name__}: {error})") from None
    made = found.crop or found.size
    if made != (image, image):
        raise TerakoyaError(str(file), "prepares pictures of another size", given=made, allowed=f"{image} x {image}")
    return found


def _read(said: Mapping[str, Any], place: str) -> Preparation:
    kind = said.get("image_processor_type", said.get("feature_extractor_type", "CLIPImageProcessor"))
    if kind not in KNOWN:
        raise TerakoyaError(f"{place}: image_processor_type", given=kind, allowed=sorted(KNOWN))
    if said.get("do_pad"):
        raise TerakoyaError(f"{place}: do_pad", "is not known here", given=said["do_pad"], allowed=False)
    size, crop = said.get("size", {"shortest_edge": 224}), said.get("crop_size", 224)
    wanted: Mapping[str, Any] = {"shortest_edge": size} if isinstance(size, int) else size
    edge = wanted.get("shortest_edge")
    exact = None if edge is not None else (int(wanted["height"]), int(wanted["width"]))
    cut = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    resizes = said.get("do_resize", True)
    mean, spread = said.get("image_mean", MEAN), said.get("image_std", SPREAD)
    return Preparation(
        edge=int(edge) if resizes and edge is not None else None,
        size=exact if resizes else None,
        crop=cut if said.get("do_center_crop", True) else None,
        resample=int(said.get("resample", 3)),
        scale=float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else None,
        mean=_three(mean) if said.get("do_normalize", True) else None,
        spread=_three(spread),
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def opened(file: Path) -> Any:
    """Decode a PNG or JPEG file -> a Pillow image in RGB, on white. Raises TerakoyaError for anything else."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("Pillow", "image") from None
    try:
        with Image.open(file, formats=KINDS) as image:
            if image.width * image.height > LARGEST:
                shown = f"{image.width} x {image.height}"
                raise TerakoyaError(str(file), "is too large", given=shown, allowed=f"{LARGEST:,} pixels at most")
            if image.mode == "RGB":
                return image.copy()
            white = Image.new("RGBA", image.size, (255, 255, 255))  # what is transparent lies on white
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    except FileNotFoundError:
        raise TerakoyaError(str(file), "is not there") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TerakoyaError(str(file), f"is no picture that can be read: {error}", allowed=list(KINDS)) from None


def prepared(image: Any, how: Preparation) -> np.ndarray:
    """Make numbers of a Pillow image in RGB, as CLIPImageProcessor does: -> (3, height, width) float32."""
    wide, high = image.size
    if how.size is not None:
        image = image.resize((how.size[1], how.size[0]), how.resample)
    elif how.edge is not None:
        short, long = min(wide, high), max(wide, high)
        other = int(how.edge * long / short)
        image = image.resize((how.edge, other) if wide <= high else (other, how.edge), how.resample)
    x = np.asarray(image, np.float32)
    if how.crop is not None:
        x = _middle(x, *how.crop)
    if how.scale is not None:
        x = x * np.float32(how.scale)
    if how.mean is not None:
        x = (x - np.array(how.mean, np.float32)) / np.array(how.spread, np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)


def _middle(x: np.ndarray, high: int, wide: int) -> np.ndarray:
    """Cut the middle out; what a picture lacks is black: x (H, W, 3) -> (high, wide, 3)."""
    lack = (max(0, high - x.shape[0]), max(0, wide - x.shape[1]))
    if any(lack):
        x = np.pad(x, [(-(-n // 2), n // 2) for n in lack] + [(0, 0)])
    top, left = (x.shape[0] - high) // 2, (x.shape[1] - wide) // 2
    return x[top : top + high, left : left + wide]
