"""Images by their content, and large ones made small."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from optimag_dist.report.html import image_uri


def _encoded(kind: str, size: int = 5) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, format=kind)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_small_images_are_embedded_as_they_are(kind: str) -> None:
    content = _encoded(kind)
    uri = image_uri(content)
    assert uri == f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("head", [b"", b'<?xml version="1.0"?>\n', b"\xef\xbb\xbf  \n", b"<!-- by hand -->"])
def test_svg_is_known_behind_its_preamble(head: bytes) -> None:
    uri = image_uri(head + b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert uri is not None
    assert uri.startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"<html><svg></svg></html>", b"RIFF1234WAVE"])
def test_what_is_no_image_is_left_out(content: bytes | None) -> None:
    assert image_uri(content) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_large_images_and_other_formats_become_thumbnails(kind: str) -> None:
    uri = image_uri(_encoded(kind, size=400))
    assert uri is not None
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.format == "PNG"
    assert max(image.size) == 192


def test_a_large_damaged_image_is_left_out() -> None:
    assert image_uri(_encoded("PNG", size=400)[:-200_000]) is None
