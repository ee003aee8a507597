"""Images as data URIs."""

import base64
import io

from PIL import Image, UnidentifiedImageError

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}
# A page shows each image some 90 pixels wide, and hundreds of images: what weighs more is made smaller.
_LARGEST_BYTES = 32_768
_THUMBNAIL = (192, 192)


def data_uri(content: bytes, mime: str) -> str:
    """``content`` as a URI that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(content: bytes | None) -> str | None:
    """An image of any size as a URI small enough for a page; None when it is none that a browser shows."""
    if not content:
        return None
    mime = sniff(content)
    if mime is not None and len(content) <= _LARGEST_BYTES:
        return data_uri(content, mime)
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.thumbnail(_THUMBNAIL)
            small = io.BytesIO()
            image.convert("RGBA").save(small, format="PNG")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return None
    return data_uri(small.getvalue(), "image/png")


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
