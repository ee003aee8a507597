"""Pictures as data URIs, and many of them side by side as one."""

import base64
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps, UnidentifiedImageError

#: A picture as a file's content, or (3, S, S) uint8 RGB; None leaves its place empty.
Picture = bytes | np.ndarray | None

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
# A page shows each picture some 90 pixels wide, and hundreds of pictures: what weighs more is made smaller.
_LARGEST_BYTES = 32_768
_THUMBNAIL = (192, 192)
# Pixels of a grid, at the resolution of all figures: a picture's side is a multiple of those that are generated.
_SIDE, _GAP, _TITLES, _HEAD, _DPI = 128, 12, 240, 80, 144
_TITLE_LETTERS, _HEAD_LETTERS = 22, 14


def data_uri(content: bytes, mime: str) -> str:
    """``content`` as a URI that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def picture_uri(content: bytes | None) -> str | None:
    """A picture of any size as a URI small enough for a page; None when it is none that a browser shows."""
    if not content:
        return None
    mime = sniff(content)
    if mime is not None and len(content) <= _LARGEST_BYTES:
        return data_uri(content, mime)
    return _thumbnail(content)


def sniff(content: bytes) -> str | None:
    """The MIME type of PNG, JPEG, GIF, WebP and SVG by their first bytes."""
    for signature, mime in _SIGNATURES.items():
        if content.startswith(signature):
            return mime
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head):
        return "image/svg+xml"
    return None


def _thumbnail(content: bytes) -> str | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.thumbnail(_THUMBNAIL)
            small = io.BytesIO()
            image.convert("RGBA").save(small, format="PNG")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    return data_uri(small.getvalue(), "image/png")


def picture_grid(rows: Sequence[tuple[str, Sequence[Picture]]], columns: Sequence[str]) -> bytes:
    """:func:`grid_figure` on white, as a PNG."""
    content = io.BytesIO()
    grid_figure(rows, columns).savefig(content, format="png", dpi=_DPI, facecolor="white")
    return content.getvalue()


def grid_figure(rows: Sequence[tuple[str, Sequence[Picture]]], columns: Sequence[str]) -> Figure:
    """Pictures in rows and columns, pixel by pixel where they are small, in the ink of the page it is drawn for.

    Args:
        rows: title, and a picture per column.
        columns: titles.
    """
    step = _SIDE + _GAP
    width, height = _TITLES + len(columns) * step, _HEAD + len(rows) * step
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)

    def write(x: float, y: float, text: str, letters: int, lines: int, horizontal: str, vertical: str) -> None:
        wrapped = textwrap.wrap(text, letters, max_lines=lines, placeholder="…")
        figure.text(x / width, y / height, "\n".join(wrapped), ha=horizontal, va=vertical, fontsize=9, parse_math=False)

    for j, title in enumerate(columns):
        write(_TITLES + j * step + _SIDE / 2, height - _HEAD + 4, title, _HEAD_LETTERS, 3, "center", "bottom")
    for i, (title, pictures) in enumerate(rows):
        bottom = height - _HEAD - _SIDE - i * step
        write(_TITLES - _GAP, bottom + _SIDE / 2, title, _TITLE_LETTERS, 5, "right", "center")
        for j, picture in enumerate(pictures):
            left = _TITLES + j * step
            if picture is None:
                continue
            # Pictures on white would have no edge on a white page.
            corner, side = ((left - 1) / width, (bottom - 1) / height), _SIDE + 2
            edge = Rectangle(corner, side / width, side / height, transform=figure.transFigure)
            edge.set(facecolor="silver", linewidth=0, zorder=-1)
            figure.add_artist(edge)
            figure.figimage(_square(picture), left, bottom)
    return figure


def _square(picture: bytes | np.ndarray) -> np.ndarray:
    """(side, side, 3) uint8, on white."""
    if isinstance(picture, bytes):
        with Image.open(io.BytesIO(picture)) as file:
            layer = file.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    else:
        image = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
    method = Image.Resampling.NEAREST if 2 * max(image.size) <= _SIDE else Image.Resampling.LANCZOS
    return np.asarray(ImageOps.pad(image.convert("RGB"), (_SIDE, _SIDE), method, color="white"))
