"""Pages from the templates beside this file, and images in them as data URIs."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, UnidentifiedImageError

from optimag_dist.files import atomic

_SHOWN_BY_BROWSERS = ("PNG", "JPEG", "GIF", "WEBP")
# A page shows each image some 90 pixels wide, and hundreds of images: what weighs more is made smaller.
_LARGEST_BYTES = 32_768
_THUMBNAIL = (192, 192)


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Write the page of ``template`` with ``values``, all of them escaped, to ``out``; an older one is replaced."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template(template).render(**values)
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def shortened(text: str, longest: int) -> str:
    """At most ``longest`` letters of ``text``."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def spread(values: Sequence[Any] | np.ndarray, count: int) -> list[Any]:
    """At most ``count`` of ``values``, evenly spread, for the first few may be all of one kind."""
    return [values[i] for i in np.linspace(0, len(values) - 1, min(len(values), count)).round().astype(int)]


def data_uri(content: bytes, mime: str) -> str:
    """``content`` as a URI that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(content: bytes | None) -> str | None:
    """An image of any size as a URI small enough for a page; None when it is none that a browser shows."""
    if not content:
        return None
    head = content[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    is_svg = head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!")) and b"<svg" in head)
    if is_svg and len(content) <= _LARGEST_BYTES:
        return data_uri(content, "image/svg+xml")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in _SHOWN_BY_BROWSERS and len(content) <= _LARGEST_BYTES:
                return data_uri(content, Image.MIME[image.format])
            image.thumbnail(_THUMBNAIL)
            small = io.BytesIO()
            image.convert("RGBA").save(small, format="PNG")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    return data_uri(small.getvalue(), "image/png")
