"""Images of rows: where they may come from, and how they are opened on demand.

A row refers to an image by a path, or contains its bytes or (in Python) the image itself. Paths must stay within one
folder, by default that of the data file, so that a dataset cannot read other files. Nothing is fetched from the
network. Only pixel formats are opened: for some others, Pillow would run other programs.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from honed.data.example import RowError, Source
from honed.errors import MissingExtraError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


@dataclass(frozen=True, slots=True)
class FromDataSet:
    """Image `number` of row `index` of a dataset on disk: read again on each access."""

    rows: Any
    index: int
    number: int
    read: Callable[[Any], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """An image of a row, not opened yet.

    Attributes:
        value: a `Path`, bytes, a PIL image, an array, or `FromDataSet`.
        source: the row that contains it.
        name: for error messages.
        max_pixels: a larger image is shrunk to at most this many, with its aspect ratio kept; None to keep its size.
    """

    value: Any
    source: Source
    name: str
    max_pixels: int | None = None


def need_pillow() -> None:
    """Raises MissingExtraError if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtraError("PIL", "vision") from None


def image_ref(value: Any, source: Source, folder: Path | None) -> ImageRef:
    """Converts a row's image value to something that can be opened.

    Args:
        value: path, `data:` URL, bytes, `{"bytes": ..., "path": ...}`, PIL image or array.
        source: the row.
        folder: base of relative paths, which no path may leave; None for the folder of the row's file.

    Raises:
        RowError: the value is a URL, leaves the folder, or is not an image.
    """
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and (found := _DATA_URL.match(value)):
        return ImageRef(value=_from_base64(value[found.end() :]), source=source, name="data: URL")
    if isinstance(value, (str, Path)):
        return ImageRef(value=_inside(str(value), folder or folder_of(source)), source=source, name=str(value)[:200])
    if isinstance(value, bytes) or hasattr(value, "convert") or hasattr(value, "__array__"):
        return ImageRef(value=value, source=source, name=type(value).__name__)
    raise RowError("not an image", f"expected a path, bytes or an image, found {type(value).__name__}: {value!r:.80}")


def folder_of(source: Source) -> Path:
    """The folder of the row's file; the current folder if the row does not come from a file."""
    file = Path(source.file)
    return file.parent if file.is_file() else Path()


def load(ref: ImageRef) -> Any:
    """Opens the image as PIL RGB, upright, as transformers' `load_image` does, and shrinks it if necessary.

    Raises:
        RowError: the image cannot be read.
    """
    value = ref.value
    if isinstance(value, FromDataSet):
        values = value.read(value.rows[value.index])
        return load(replace(image_ref(values[value.number], ref.source, None), max_pixels=ref.max_pixels))
    try:
        return shrunk(_opened(value), ref.max_pixels)
    except Exception as error:  # Pillow raises a dozen types for broken files: OSError, SyntaxError, struct.error, ...
        if isinstance(error, FileNotFoundError):
            raise RowError("image not found", str(value)) from None
        raise RowError("broken image", f"{ref.name}: {type(error).__name__}: {error}") from None


def shrunk(image: Any, max_pixels: int | None) -> Any:
    """The image, scaled to at most `max_pixels` if larger: both sides times one factor, rounded down, at least 1."""
    width, height = image.size
    if max_pixels is None or width * height <= max_pixels:
        return image
    factor = math.sqrt(max_pixels / (width * height))
    return image.resize((max(1, int(width * factor)), max(1, int(height * factor))))


def _opened(value: Any) -> Any:
    from PIL import Image, ImageOps

    if hasattr(value, "convert"):
        return ImageOps.exif_transpose(value).convert("RGB")
    if hasattr(value, "__array__"):
        return Image.fromarray(value).convert("RGB")
    Image.init()
    known = tuple(name for name in FORMATS if name in Image.OPEN)
    with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=known) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("broken image", f"the data: URL is not base64: {error}") from None


def _inside(text: str, folder: Path) -> Path:
    if _URL.match(text):
        raise RowError("image is a URL", f"{text[:120]}: download it, and name the file")
    root = folder.expanduser().resolve()
    try:
        path = (root / text).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null character, or a loop of links
        raise RowError("not an image", f"{text[:120]!r}: {error}") from None
    if not path.is_relative_to(root):
        raise RowError(
            "image outside the data folder",
            f"{text[:120]} leads out of {root}; set image_folder (train.image_folder) to the folder of the images",
        )
    return path
