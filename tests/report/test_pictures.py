"""Pictures by their first bytes, large ones made small, and grids of them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from optimag_dist.report.drawing import drawing
from optimag_dist.report.pictures import grid_figure, picture_grid, picture_uri, sniff


def _encoded(kind: str, size: int = 5) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise).save(content, format=kind)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_small_pictures_are_embedded_as_they_are(kind: str) -> None:
    content = _encoded(kind)
    uri = picture_uri(content)
    assert uri == f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("head", [b"", b'<?xml version="1.0"?>\n', b"\xef\xbb\xbf  \n", b"<!-- by hand -->"])
def test_svg_is_known_behind_its_preamble(head: bytes) -> None:
    assert sniff(head + b'<svg xmlns="http://www.w3.org/2000/svg"/>') == "image/svg+xml"


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"<html><svg></svg></html>", b"RIFF1234WAVE"])
def test_what_is_no_picture_is_left_out(content: bytes | None) -> None:
    assert picture_uri(content) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_large_pictures_and_other_formats_become_thumbnails(kind: str) -> None:
    uri = picture_uri(_encoded(kind, size=400))
    assert uri is not None
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.format == "PNG"
    assert max(image.size) == 192


def test_a_large_damaged_picture_is_left_out() -> None:
    assert picture_uri(_encoded("PNG", size=400)[:-200_000]) is None


def _found(page: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Where ``picture`` stands in ``page``, pixel for pixel: (top, left) of each."""
    windows = np.lib.stride_tricks.sliding_window_view(page[..., 0], picture.shape[:2])[:, :, ::31, ::31]
    tops, lefts = np.nonzero((windows == picture[::31, ::31, 0]).all(axis=(2, 3)))
    side = picture.shape[0]
    places = zip(tops.tolist(), lefts.tolist(), strict=True)
    return [(top, left) for top, left in places if (page[top : top + side, left : left + side] == picture).all()]


def test_a_grid_holds_every_picture_in_its_place_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    stored = np.zeros((128, 128, 4), np.uint8)
    stored[32:96, 32:96] = (*rng.integers(1, 256, 3), 255)
    content = io.BytesIO()
    Image.fromarray(stored).save(content, format="PNG")
    rows = [
        ("first", [content.getvalue(), small[0]]),
        ("second $1$ _", [small[1], small[2]]),
        ("third", [None, small[0]]),
    ]
    page = np.asarray(Image.open(io.BytesIO(picture_grid(rows, ["reference", "drawn"]))).convert("RGB"))

    enlarged = [picture.transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1) for picture in small]
    on_white = np.where(stored[..., 3:] > 0, stored[..., :3], 255).astype(np.uint8)
    places = [_found(page, picture) for picture in (*enlarged, on_white)]
    assert [len(place) for place in places] == [2, 1, 1, 1]
    (top, right), (bottom, also_right) = places[0]
    (second, left), (also_second, also_also_right) = places[1][0], places[2][0]
    assert places[3] == [(top, left)]
    assert right == also_right == also_also_right > left + 128
    assert top + 128 < second == also_second < bottom - 128
    assert (page[bottom : bottom + 128, left : left + 128] == 255).all()


def test_a_grid_is_a_drawing_for_light_and_dark_pages() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    made = drawing(lambda: grid_figure([("node", [picture])], ["drawn"]), "what a model drew")
    enlarged = picture.transpose(1, 2, 0).repeat(4, axis=0).repeat(4, axis=1)
    for uri in (made.light, made.dark):
        page = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        assert page.getpixel((0, 0))[3] == 0
        assert len(_found(np.asarray(page)[..., :3], enlarged)) == 1
