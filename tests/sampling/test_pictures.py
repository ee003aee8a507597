"""Stored pictures as pixels: composed on white, scaled, and told by id where they do not decode."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from optimag_dist.sampling.pictures import read_pictures
from optimag_dist.types import InputError


def _encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=kind)
    return content.getvalue()


def _checks(side: int) -> np.ndarray:
    """Black and white, pixel by pixel."""
    return np.broadcast_to((np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None], (side, side, 3))


def test_pixels_of_the_right_size_stay_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels, decoded = read_pictures([_encoded(picture), None, b""], 8, ["a", "b", "c"])
    assert pixels.dtype == np.uint8
    assert decoded.tolist() == [True, False, False]
    np.testing.assert_array_equal(pixels[0], picture.transpose(2, 0, 1))
    assert not pixels[1:].any()


def test_what_is_transparent_is_white() -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:4] = (255, 0, 0, 255)
    picture[4:, :4] = (0, 0, 0, 128)
    pixels, _ = read_pictures([_encoded(picture)], 8, ["a"])
    assert (pixels[0, :, :4] == np.array([255, 0, 0])[:, None, None]).all()
    assert (pixels[0, :, 4:, 4:] == 255).all()
    assert (abs(pixels[0, :, 4:, :4].astype(int) - 127) <= 1).all()


def test_made_smaller_without_aliasing_and_the_middle_is_kept() -> None:
    pixels, _ = read_pictures([_encoded(_checks(64))], 8, ["a"])
    assert (abs(pixels.astype(int) - 127) <= 8).all()
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (read_pictures([_encoded(wide)], 16, ["a"])[0] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP"])
def test_other_formats_decode(kind: str) -> None:
    pixels, decoded = read_pictures([_encoded(np.full((40, 40, 3), 200, np.uint8), kind)], 8, [7])
    assert decoded.all()
    assert (abs(pixels.astype(int) - 200) <= 3).all()


def test_bad_pictures_are_counted_and_named() -> None:
    good = _encoded(_checks(8))
    values = [good, b"no picture", None, good[: len(good) // 2], b"<svg/>", b"\x89PNG\r\n\x1a\n"]
    ids = np.array([f"node/{i}" for i in range(6)])
    told = "4 of 6 pictures do not decode, those of 'node/1', 'node/3', 'node/4', …"
    with pytest.warns(UserWarning, match=f"^{told}; these nodes count as nodes without a picture"):
        pixels, decoded = read_pictures(values, 8, ids)
    assert decoded.tolist() == [True, False, False, False, False, False]
    assert not pixels[1:].any()
    with pytest.raises(InputError, match=told):
        read_pictures(values, 8, ids, on_bad="error")


def test_a_missing_picture_is_no_bad_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, decoded = read_pictures([None, b""], 8, ["a", "b"], on_bad="error")
    assert not decoded.any()
