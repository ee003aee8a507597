"""Pictures from tokens: a denoising diffusion model whose UNet attends to its condition.

Symbols:

    A, T, S    pictures, condition tokens of each, side of a picture in pixels
    x_0        what is diffused: the pixels, or the latents (A, C, S/f, S/f) of a pipeline's autoencoder
    t, ᾱ_t     noise level 0 … steps − 1, and the share of the signal's variance that it leaves
    ε          standard normal noise;  x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε

The network sees x_t, t and the tokens, and predicts ε, x_0, or v = √ᾱ_t ε − √(1 − ᾱ_t) x_0 (Salimans and Ho, ICLR
2022).
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from optimag_dist.models.hub import Source
from optimag_dist.options import Options
from optimag_dist.types import InputError

T = TypeVar("T")

SCRATCH = "scratch"
_SOURCE = Source(
    library="diffusers",
    extra="generate",
    contents="a diffusers pipeline (model_index.json and a folder per part, as save_pretrained writes them)",
    shipped=(SCRATCH,),
)
# Of the UNet made here: heads of 16 channels, norms over 8 groups.
_HEAD_WIDTH, _GROUPS = 16, 8
# What a UNet of diffusers may ask for beside picture, noise level and tokens.
_OTHER_INPUTS = (
    "addition_embed_type",
    "class_embed_type",
    "encoder_hid_dim_type",
    "num_class_embeds",
    "time_cond_proj_dim",
)


class DiffusionOptions(Options):
    """The model that draws.

    Attributes:
        model: ``scratch``, a UNet of its own on pixels; or the folder or Hugging Face hub id of a diffusers pipeline,
            whose UNet, noise schedule and, where it has one, autoencoder are taken.
        tuning: of a named pipeline's UNet: ``full``, or ``frozen``, and only what makes the tokens learns. Its
            autoencoder is always frozen.
        size: side of the pictures in pixels; 32 to 64 for ``scratch``.
        channels: of the UNet made from scratch, from its finest level to its coarsest, each with half the side of the
            one before; the tokens are attended to on all levels but the first.
        steps, schedule, prediction: noise levels in training, how ᾱ falls over them (``squaredcos_cap_v2``: Nichol and
            Dhariwal, ICML 2021; ``linear``: Ho et al., NeurIPS 2020), and what the network predicts. A named pipeline
            brings its own.
        sampler: ``ddim`` (Song et al., ICLR 2021), deterministic after its start; or ``ddpm``, with fresh noise in each
            step.
        sampling_steps: of either; must divide the number of noise levels.
        guidance: weight of classifier-free guidance (Ho and Salimans 2022); 1 is none, more follows the condition more
            closely and doubles the cost of sampling.
        drop_condition: share of the pictures that are trained on without their condition, where there is guidance.
    """

    model: Annotated[str, AfterValidator(_SOURCE.absolute)] = SCRATCH
    tuning: Literal["full", "frozen"] = "full"
    size: int = Field(32, ge=8)
    channels: tuple[int, ...] = Field((32, 64), min_length=2)
    steps: int = Field(1000, ge=2)
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    prediction: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    sampler: Literal["ddim", "ddpm"] = "ddim"
    sampling_steps: int = Field(25, ge=1)
    guidance: float = Field(1.0, ge=1, allow_inf_nan=False)
    drop_condition: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _fits_together(self) -> "DiffusionOptions":
        if self.model == SCRATCH:
            if any(width < 1 or width % _HEAD_WIDTH for width in self.channels):
                raise ValueError(f"channels must be multiples of {_HEAD_WIDTH}, got {list(self.channels)}")
            unit = 2 ** (len(self.channels) - 1)
            if self.size % unit:
                raise ValueError(f"size must be a multiple of {unit} for {len(self.channels)} levels, got {self.size}")
            _check_sampling_steps(self.sampling_steps, self.steps)
        return self


def check_diffusion(options: DiffusionOptions) -> None:
    """Check, without loading weights, that diffusers is there, that the model can be had, has a UNet conditioned by
    tokens alone, and that ``size`` and ``sampling_steps`` suit it; else an InputError."""
    _diffusers()
    if options.model != SCRATCH:
        _Pipeline(options)


class ConditionalDiffusion(nn.Module):
    """Draws (A, 3, S, S) pictures under the condition of T tokens each, of ``width`` numbers. A row without any token,
    all masked, is drawn without condition: it shows a learned null token. Raises as :func:`check_diffusion`, or
    ``InputError`` where a pipeline's weights are missing, damaged or of other shapes than its configuration says."""

    def __init__(self, options: DiffusionOptions) -> None:
        super().__init__()
        self._options = options
        self.unet: Any
        self.vae: Any
        if options.model == SCRATCH:
            self.unet, self.vae, self._schedule = _unet(options), None, _schedule(options)
        else:
            self.unet, self.vae, self._schedule = _Pipeline(options).load()
            self.unet.requires_grad_(options.tuning == "full")
        self._schedule.set_timesteps(options.sampling_steps)
        self._num_levels = int(self._schedule.config["num_train_timesteps"])
        self._sampling_levels = self._schedule.timesteps.tolist()
        width = self.unet.config["cross_attention_dim"]
        self.width = int(width if isinstance(width, int) else width[0])
        self.null = nn.Parameter(torch.zeros(self.width))
        side = options.size // _shrinkage(None if self.vae is None else self.vae.config)
        self._shape = (self.unet.config["in_channels"], side, side)

    def loss(self, pixels: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """Mean squared error of what is predicted, at one random noise level per picture (Ho et al. 2020, eq. 14):
        averaged within each picture, summed over pictures, (A, 3, S, S) float32 in [−1, 1]; tokens are (A, T, width),
        their mask (A, T) bool.

        Noise, then noise levels, then, with guidance, dropped conditions are drawn from torch's global generator.
        """
        clean = self._encode(pixels)
        # Not randn_like: what it draws where depends on how the autoencoder's convolutions lay out memory.
        noise = torch.randn(clean.shape, device=clean.device)
        levels = torch.randint(self._num_levels, (len(clean),), device=clean.device)
        if self._options.guidance != 1:
            kept = torch.rand(len(clean), 1, device=clean.device) >= self._options.drop_condition
            token_mask = token_mask & kept
        return self._errors(clean, noise, levels, tokens, token_mask).sum()

    @torch.no_grad()
    def denoising_error(self, pixels: Tensor, tokens: Tensor, token_mask: Tensor, keys: Tensor) -> Tensor:
        """The error of :meth:`loss` for each picture, (A,) float32, with the condition always shown; noise and noise
        level are a function of the picture's key (A,) int64 alone."""
        clean = self._encode(pixels)
        noise = key_noise(keys, 0, self._shape)
        levels = (_key_bits(keys, 1, 1)[:, 0] >> 32 & 0x7FFFFFFF) % self._num_levels
        return self._errors(clean, noise, levels, tokens, token_mask)

    @torch.no_grad()
    def sample(self, tokens: Tensor, token_mask: Tensor, keys: Tensor) -> Tensor:
        """Draw a picture per row: (A, 3, S, S) float32 in [−1, 1], of tokens (A, T, width) with their mask. All noise
        is a function of the row's key (A,) int64 alone: a picture does not depend, up to rounding, on those drawn with
        it."""
        schedule, guidance = self._schedule, self._options.guidance
        fresh_noise = self._options.sampler == "ddpm"
        x = key_noise(keys, 0, self._shape)
        for step, level in enumerate(self._sampling_levels, start=1):
            # Made on the device: a number that is copied there would make the host wait.
            levels = torch.full(keys.shape, level, device=keys.device)
            prediction = self._predict(x, levels, tokens, token_mask)
            if guidance != 1:
                unconditional = self._predict(x, levels, tokens, torch.zeros_like(token_mask))
                prediction = unconditional + guidance * (prediction - unconditional)
            # With η = 1 DDIM is DDPM (Song et al. 2021, section 4.1), and takes noise that is given to it.
            x = schedule.step(
                prediction.float(),
                level,
                x,
                eta=float(fresh_noise),
                use_clipped_model_output=True,
                variance_noise=key_noise(keys, step, self._shape) if fresh_noise else None,
            ).prev_sample
        return self._decode(x).clamp(-1, 1)

    def _errors(self, clean: Tensor, noise: Tensor, levels: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """(A,) float32."""
        prediction = self._predict(self._schedule.add_noise(clean, noise, levels), levels, tokens, token_mask)
        kind = self._schedule.config["prediction_type"]
        if kind == "v_prediction":
            target = self._schedule.get_velocity(clean, noise, levels)
        else:
            target = noise if kind == "epsilon" else clean
        return (prediction.float() - target).square().mean(dim=(1, 2, 3))

    def _predict(self, noisy: Tensor, levels: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        null = self.null.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([tokens, null], dim=1)
        shown = torch.cat([token_mask, ~token_mask.any(dim=1, keepdim=True)], dim=1)
        prediction: Tensor = self.unet(noisy, levels, tokens, encoder_attention_mask=shown).sample
        return prediction

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        if self.vae is None:
            return pixels
        latents: Tensor = self.vae.encode(pixels).latent_dist.mode() * self.vae.config["scaling_factor"]
        return latents.float()

    def _decode(self, x: Tensor) -> Tensor:
        if self.vae is None:
            return x
        pixels: Tensor = self.vae.decode(x / self.vae.config["scaling_factor"]).sample
        return pixels.float()


# -- noise by key --------------------------------------------------------------------------------------------------


def key_noise(keys: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise (A, *shape) float32 on the keys' device, each row a function of its key (A,) int64 and of
    ``stream`` alone; nothing waits for the device."""
    bits = _key_bits(keys, stream, prod(shape))
    # Box and Muller (1958); 24 bits are what a float32 holds, half a step keeps the logarithm finite.
    first, second = ((bits >> shift & 0xFFFFFF).float() for shift in (40, 0))
    radius = (-2 * ((first + 0.5) * 2**-24).log()).sqrt()
    return (radius * (second * (2 * torch.pi * 2**-24)).cos()).view(-1, *shape)


def _key_bits(keys: Tensor, stream: int, count: int) -> Tensor:
    """(A, count) int64 of random bits: SplitMix64 (Steele et al., OOPSLA 2014), seeded by key and stream."""
    starts = _mix(_mix(keys + _GAMMA) + (stream * _GAMMA_UNSIGNED & 0x7FFFFFFFFFFFFFFF))
    return _mix(starts[:, None] + torch.arange(1, count + 1, device=keys.device) * _GAMMA)


_GAMMA_UNSIGNED = 0x9E3779B97F4A7C15
_GAMMA = _GAMMA_UNSIGNED - 2**64


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's mixing function; int64 wraps around as uint64 does."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        z = (z ^ _shift_right(z, shift)) * factor
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, count: int) -> Tensor:
    """Logical, where torch's own keeps the sign."""
    return z >> count & 2 ** (64 - count) - 1


# -- networks ------------------------------------------------------------------------------------------------------


def _diffusers() -> Any:
    return _SOURCE.imported("diffusers", "drawing pictures")


def _unet(options: DiffusionOptions) -> Any:
    below = len(options.channels) - 1
    return _diffusers().UNet2DConditionModel(
        sample_size=options.size,
        in_channels=3,
        out_channels=3,
        block_out_channels=options.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * below),
        up_block_types=(*["CrossAttnUpBlock2D"] * below, "UpBlock2D"),
        cross_attention_dim=options.channels[-1],
        # Named for what it once was: the number of heads.
        attention_head_dim=tuple(width // _HEAD_WIDTH for width in options.channels),
        norm_num_groups=_GROUPS,
    )


def _schedule(options: DiffusionOptions) -> Any:
    return _diffusers().DDIMScheduler(
        num_train_timesteps=options.steps,
        beta_schedule=options.schedule,
        prediction_type=options.prediction,
        timestep_spacing=_SPACING,
    )


# Sampling begins at the last noise level, or no picture could be much brighter or darker than noise (Lin et al. 2024).
_SPACING = "trailing"


def _shrinkage(vae: Mapping[str, Any] | None) -> int:
    """Pixels per latent along a side."""
    return 1 if vae is None else int(2 ** (len(vae["block_out_channels"]) - 1))


def _check_sampling_steps(sampling_steps: int, levels: int) -> None:
    if levels % sampling_steps:
        raise ValueError(f"sampling_steps must divide the number of noise levels, {levels}; got {sampling_steps}")


class _Pipeline:
    """A named pipeline, its configuration read and checked."""

    def __init__(self, options: DiffusionOptions) -> None:
        self._model = model = options.model
        self._library = _diffusers()
        index = self._read(self._library.DiffusionPipeline.load_config)
        kind = (index.get("unet") or (None, None))[1]
        if kind != "UNet2DConditionModel":
            has = f"its unet is a {kind}" if kind else "it has no unet"
            raise InputError(
                f"{model}: needed a pipeline with a UNet2DConditionModel, such as those of Stable Diffusion 1 and 2; "
                f"{has}"
            )
        unet = self._read(self._library.UNet2DConditionModel.load_config, subfolder="unet")
        self._vae = None
        if (index.get("vae") or (None, None))[1] == "AutoencoderKL":
            self._vae = self._read(self._library.AutoencoderKL.load_config, subfolder="vae")
        others = [name for name in _OTHER_INPUTS if unet.get(name) is not None]
        widths = unet["cross_attention_dim"]
        if others or (not isinstance(widths, int) and len(set(widths)) > 1):
            what = ", ".join(f"{name}={unet[name]}" for name in others) or f"cross_attention_dim={list(widths)}"
            raise InputError(
                f"{model}: its UNet needs more than one kind of token ({what}); name a pipeline whose UNet attends to "
                f"tokens and nothing else, such as those of Stable Diffusion 1 and 2"
            )
        channels = 3 if self._vae is None else self._vae["latent_channels"]
        if not unet["in_channels"] == unet["out_channels"] == channels:
            raise InputError(
                f"{model}: its UNet turns {unet['in_channels']} channels into {unet['out_channels']}, and its "
                f"{'pictures' if self._vae is None else 'latents'} have {channels}; name a pipeline that draws from "
                f"noise alone"
            )
        unit = _shrinkage(self._vae) * 2 ** (len(unet["block_out_channels"]) - 1)
        if options.size % unit:
            raise InputError(f"{model}: size must be a multiple of {unit} for it, got {options.size}")
        schedule = self._read(self._library.DDIMScheduler.load_config, subfolder="scheduler")
        try:
            _check_sampling_steps(options.sampling_steps, schedule["num_train_timesteps"])
        except ValueError as error:
            raise InputError(f"{model}: {error}") from error

    def load(self) -> tuple[Any, Any | None, Any]:
        """UNet, autoencoder and noise schedule, float32 on the CPU."""
        library = self._library
        on_cpu: dict[str, Any] = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
        unet = self._read(library.UNet2DConditionModel.from_pretrained, subfolder="unet", **on_cpu)
        vae = None
        if self._vae is not None:
            vae = self._read(library.AutoencoderKL.from_pretrained, subfolder="vae", **on_cpu).requires_grad_(False)
        # Latents have no bounds, and not every kind of schedule that a pipeline brings says so.
        how = {"timestep_spacing": _SPACING, "clip_sample": vae is None}
        schedule = self._read(library.DDIMScheduler.from_pretrained, subfolder="scheduler", **how)
        return unet, vae, schedule

    def _read(self, load: Callable[..., T], **how: Any) -> T:
        return _SOURCE.read(self._model, load, **how)
