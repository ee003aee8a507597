"""Pictures as pixels, composed on white and scaled; and those that do not decode, which are counted and named."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from optimag_dist.models.pretrained import PictureReader
from optimag_dist.sampling.pictures import BadPictures, told_bad_pictures
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
    pixels, decoded = PictureReader(8).read([_encoded(picture), None, b""])
    assert pixels.dtype == np.uint8
    assert decoded.tolist() == [True, False, False]
    np.testing.assert_array_equal(pixels[0], picture.transpose(2, 0, 1))
    assert not pixels[1:].any()


def test_what_is_transparent_is_white() -> None:
    picture = np.zeros((8, 8, 4), np.uint8)
    picture[:4] = (255, 0, 0, 255)
    picture[4:, :4] = (0, 0, 0, 128)
    pixels, _ = PictureReader(8).read([_encoded(picture)])
    assert (pixels[0, :, :4] == np.array([255, 0, 0])[:, None, None]).all()
    assert (pixels[0, :, 4:, 4:] == 255).all()
    assert (abs(pixels[0, :, 4:, :4].astype(int) - 127) <= 1).all()


def test_made_smaller_without_aliasing_and_the_middle_is_kept() -> None:
    pixels, _ = PictureReader(8).read([_encoded(_checks(64))])
    assert (abs(pixels.astype(int) - 127) <= 8).all()
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    assert (PictureReader(16).read([_encoded(wide)])[0] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP"])
def test_other_formats_decode(kind: str) -> None:
    pixels, decoded = PictureReader(8).read([_encoded(np.full((40, 40, 3), 200, np.uint8), kind)])
    assert decoded.all()
    assert (abs(pixels.astype(int) - 200) <= 3).all()


class _Store:
    """Nodes have ids, and that is all that is asked for."""

    path = "a/store"

    def ids(self, nodes: np.ndarray) -> list[str]:
        return [f"node/{node}" for node in nodes]


def test_bad_pictures_are_counted_and_named() -> None:
    good = _encoded(_checks(8))
    values = [good, b"no picture", None, b"", good[: len(good) // 2], b"<svg/>", b"\x89PNG\r\n\x1a\n"]
    nodes = np.arange(10, 10 + len(values))
    pixels, decoded = PictureReader(8).read(values)
    assert decoded.tolist() == [True] + [False] * 6
    assert not pixels[1:].any()

    store: Any = _Store()
    bad = BadPictures(store, "photo", "mask", "task.on_bad_picture")
    for _ in range(2):
        bad.note(nodes, values, decoded)
    assert bad.nodes == {11, 14, 15, 16}
    assert told_bad_pictures(store, "photo", bad.nodes) == (
        "pictures: 'photo' does not decode for 4 nodes, which counted as nodes without: "
        "'node/11', 'node/14', 'node/15', 'node/16'"
    )
    assert told_bad_pictures(store, "photo", range(1200)).endswith(
        "1,200 nodes, which counted as nodes without: 'node/0', 'node/1', 'node/2', 'node/3', 'node/4', …"
    )

    strict = BadPictures(store, "photo", "error", "task.on_bad_picture")
    strict.note(nodes[[0, 2, 3]], [values[i] for i in (0, 2, 3)], decoded[[0, 2, 3]])
    with pytest.raises(InputError, match=r"'photo' of node 'node/11' does not decode.*task\.on_bad_picture=mask"):
        strict.note(nodes, values, decoded)
