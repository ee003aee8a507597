"""Raw texts and pictures as rows of batches: what stands in the store, whoever asks, and what is missing in it."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from optimag_dist.models.encoder_networks import EFFICIENTNET
from optimag_dist.models.pretrained import PADDING, PretrainedOptions
from optimag_dist.sampling import LocalSource
from optimag_dist.sampling.raw import RawRows, check_encoders
from optimag_dist.store import GraphStore
from optimag_dist.types import InputError

from ..raw_store import BROKEN, NUM_NODES, has_picture, has_text, make_raw_store, picture_of, text_of
from ..tiny_models import WORDS, save_text_model

PX = 16
EVERYONE = np.arange(NUM_NODES)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    return make_raw_store(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PretrainedOptions]:
    bert = save_text_model(tmp_path_factory.mktemp("models"))
    picture = PretrainedOptions(attribute="photo", model=EFFICIENTNET, image_size=PX)
    return {"words": PretrainedOptions(attribute="title", model=str(bert), max_length=6), "image": picture}


@pytest.fixture
def rows(store: GraphStore, encoders: dict[str, PretrainedOptions]) -> RawRows:
    return RawRows(LocalSource(store), store, encoders)


def _tokens(node: int) -> list[int]:
    text = (text_of(node) or "").split()
    return [2, *[WORDS.index(word) for word in text[:4]], 3] if text else []


def test_raw_rows_are_what_the_store_holds(rows: RawRows) -> None:
    nodes = np.array([5, 3, 39, 0, 5, 6, 1, 11, 20])
    tokens = rows.features("words", nodes)
    assert [[int(t) for t in row if t != PADDING] for row in tokens] == [_tokens(node) for node in nodes]
    assert rows.present("words", nodes).tolist() == [has_text(node) for node in nodes]
    pixels = rows.features("image", nodes)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (len(nodes), 3, PX, PX))
    assert rows.present("image", nodes).tolist() == [has_picture(node) for node in nodes]
    for row, node in enumerate(nodes):
        if has_picture(node):
            middle = Image.open(io.BytesIO(picture_of(node))).resize(
                (PX, PX), Image.Resampling.BILINEAR, (2, 0, 22, 20)
            )
            assert np.array_equal(pixels[row], np.asarray(middle).transpose(2, 0, 1))
        else:
            assert not pixels[row].any()


def test_presence_may_be_asked_for_first(rows: RawRows) -> None:
    for name, truth in (("words", has_text), ("image", has_picture)):
        assert rows.present(name, EVERYONE[::-1]).tolist() == [truth(node) for node in EVERYONE[::-1]]
    assert {name: bad.nodes for name, bad in rows.bad_pictures.items()} == {"image": set(BROKEN)}


def test_everything_else_is_the_stores(rows: RawRows, store: GraphStore) -> None:
    plain = LocalSource(store)
    assert {name: (m.width, m.dtype) for name, m in rows.modalities.items()} == {
        "facts": (3, "float32"),
        "image": (0, "float32"),
        "words": (0, "float32"),
    }
    assert list(rows.modalities) == ["facts", "image", "words"]
    nodes = np.array([4, 4, 17])
    assert np.array_equal(rows.features("facts", nodes), plain.features("facts", nodes))
    assert np.array_equal(rows.present("facts", nodes), plain.present("facts", nodes))
    assert np.array_equal(rows.degrees(nodes), plain.degrees(nodes))
    assert rows.topology is plain.topology
    for mine, its in zip(rows.neighbours(nodes, 1, 7), plain.neighbours(nodes, 1, 7), strict=True):
        assert np.array_equal(mine, its)


def test_several_threads_get_what_one_gets(rows: RawRows) -> None:
    rng = np.random.default_rng(0)
    asked = [(name, rng.integers(0, NUM_NODES, 30)) for name in ("words", "image") * 30]
    expected = [(rows.features(*question), rows.present(*question)) for question in asked]
    fresh = pickle.loads(pickle.dumps(rows))

    def answer(question: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        present = fresh.present(*question)
        return fresh.features(*question), present

    with ThreadPoolExecutor(8) as threads:
        for mine, its in zip(threads.map(answer, asked), expected, strict=True):
            assert all(np.array_equal(one, other) for one, other in zip(mine, its, strict=True))


def test_a_broken_picture_may_be_fatal(store: GraphStore, encoders: dict[str, PretrainedOptions]) -> None:
    strict = encoders["image"].model_copy(update={"on_bad_picture": "error"})
    rows = RawRows(LocalSource(store), store, {"image": strict})
    rows.features("image", EVERYONE[:6])
    for _ in range(2):
        with pytest.raises(InputError, match=r"node 'n6'(.|\n)*model\.encoders\.image\.on_bad_picture=mask"):
            rows.features("image", EVERYONE)


def test_what_the_store_or_the_model_lacks(store: GraphStore) -> None:
    for attribute, model, words in (
        (
            "name",
            "minilm",
            r"model\.encoders\.text: .*no attribute 'name', it has nothing \(text\), photo \(image\)",
        ),
        ("name", "minilm", "under attributes in the schema and ingest again"),
        ("photo", "minilm", r"model\.encoders\.text: .*'photo' is image, .*minilm reads text"),
        ("title", "./nowhere", r"model\.encoders\.text: .*no such folder"),
    ):
        with pytest.raises(InputError, match=words):
            check_encoders(store, {"text": PretrainedOptions(attribute=attribute, model=model)})


def test_kinds(store: GraphStore, encoders: dict[str, PretrainedOptions]) -> None:
    assert check_encoders(store, encoders) == {"words": "text", "image": "image"}
