"""The diffusion model against hand-written formulae, diffusers' own DDPM, and pictures that can be learned."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optimag_dist.models.diffusion import ConditionalDiffusion, DiffusionOptions, check_diffusion, key_noise
from optimag_dist.types import InputError

A, T, S = 4, 3, 8
TINY = {"size": S, "channels": (16, 32)}
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def _model(**options: Any) -> ConditionalDiffusion:
    torch.manual_seed(0)
    model = ConditionalDiffusion(DiffusionOptions(**{**TINY, **options}))
    with torch.no_grad():
        model.null.normal_()
    return model


def _batch(model: ConditionalDiffusion) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels, tokens, mask with one row of none, keys."""
    rng = torch.Generator().manual_seed(1)
    pixels = torch.rand(A, 3, model._options.size, model._options.size, generator=rng) * 2 - 1
    tokens = torch.randn(A, T, model.width, generator=rng)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 1]], dtype=torch.bool)
    return pixels, tokens, mask, torch.tensor([5, 0, -3, 2**62])


def _alpha_bar(schedule: str, steps: int) -> np.ndarray:
    """(steps,) ᾱ in float64 by the papers."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, steps)
    else:
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return np.cumprod(1 - betas)


def _errors_by_hand(
    model: ConditionalDiffusion, x: Tensor, noise: Tensor, levels: Tensor, tokens: Tensor, mask: Tensor, a: np.ndarray
) -> Tensor:
    """(A,) mean squared errors, a row at a time, with the masked tokens taken out."""
    errors = []
    for i in range(len(x)):
        signal, spread = math.sqrt(a[levels[i]]), math.sqrt(1 - a[levels[i]])
        shown = tokens[i][mask[i]] if mask[i].any() else model.null[None]
        noisy = signal * x[i] + spread * noise[i]
        output = model.unet(noisy[None], levels[i : i + 1], shown[None]).sample[0]
        kind = model._schedule.config["prediction_type"]
        target = {"epsilon": noise[i], "sample": x[i], "v_prediction": signal * noise[i] - spread * x[i]}[kind]
        errors.append((target - output).square().mean())
    return torch.stack(errors)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("schedule", "steps"), [("squaredcos_cap_v2", 100), ("linear", 1000)])
def test_loss_is_equation_14_of_ho_et_al(prediction: str, schedule: str, steps: int) -> None:
    model = _model(prediction=prediction, schedule=schedule, steps=steps)
    pixels, tokens, mask, _ = _batch(model)
    torch.manual_seed(7)
    loss = model.loss(pixels, tokens, mask)

    torch.manual_seed(7)
    noise, levels = torch.randn(pixels.shape), torch.randint(steps, (A,))
    by_hand = _errors_by_hand(model, pixels, noise, levels, tokens, mask, _alpha_bar(schedule, steps))
    torch.testing.assert_close(loss, by_hand.sum(), rtol=2e-5, atol=0)


def test_with_guidance_some_are_trained_on_without_their_condition() -> None:
    model = _model(guidance=3.0, drop_condition=0.5)
    pixels, tokens, mask, _ = _batch(model)
    torch.manual_seed(5)
    loss = model.loss(pixels, tokens, mask)

    torch.manual_seed(5)
    noise, levels, dropped = torch.randn(pixels.shape), torch.randint(1000, (A,)), torch.rand(A, 1) < 0.5
    assert 0 < dropped[mask.any(1)].sum() < 3
    a = _alpha_bar("squaredcos_cap_v2", 1000)
    by_hand = _errors_by_hand(model, pixels, noise, levels, tokens, mask & ~dropped, a)
    torch.testing.assert_close(loss, by_hand.sum(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}, {"channels": (16, 32, 32)}])
def test_every_parameter_and_the_tokens_get_a_gradient(options: dict[str, Any], shown: bool) -> None:
    model = _model(**options)
    pixels, tokens, mask, _ = _batch(model)
    model.loss(pixels, tokens.requires_grad_(), torch.full_like(mask, shown)).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert tokens.grad is not None
    assert bool(tokens.grad.any()) == shown or options.get("guidance")
    assert bool(model.null.grad.any()) == (not shown) or options.get("guidance")


def test_denoising_error_depends_on_a_pictures_own_key_and_on_nothing_else() -> None:
    model = _model()
    pixels, tokens, mask, keys = _batch(model)
    together = model.denoising_error(pixels, tokens, mask, keys)
    torch.manual_seed(99)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = model.denoising_error(pixels[order], tokens[order], mask[order], keys[order])
    torch.testing.assert_close(shuffled, together[order], rtol=1e-5, atol=1e-6)
    for i in range(A):
        alone = model.denoising_error(pixels[i : i + 1], tokens[i : i + 1], mask[i : i + 1], keys[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-6)
    assert (model.denoising_error(pixels, tokens, mask, keys + 1) != together).all()


def test_denoising_errors_mean_is_that_of_the_loss() -> None:
    model = _model()
    pixels, tokens, mask, _ = _batch(model)
    many = 300
    repeated = [x[:1].expand(many, *x.shape[1:]) for x in (pixels, tokens, mask)]
    errors = model.denoising_error(*repeated, torch.arange(many))
    with torch.no_grad():
        losses = torch.stack([model.loss(*repeated) / many for _ in range(3)])
    assert abs(errors.mean() - losses.mean()) < 4 * errors.std() / math.sqrt(many)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_sample_depends_on_its_own_key_and_condition_and_on_nothing_else(sampler: str) -> None:
    model = _model(sampler=sampler, sampling_steps=4)
    _, tokens, mask, keys = _batch(model)
    together = model.sample(tokens, mask, keys)
    assert together.shape == (A, 3, S, S)
    assert together.abs().max() <= 1
    torch.manual_seed(99)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model.sample(tokens[order], mask[order], keys[order]), together[order])
    torch.testing.assert_close(model.sample(tokens[1:2], mask[1:2], keys[1:2]), together[1:2])
    same_condition = model.sample(tokens[:1].expand(A, -1, -1), mask[:1].expand(A, -1), keys)
    assert all((same_condition[i] - same_condition[0]).abs().mean() > 0.01 for i in range(1, A))
    same_key = model.sample(tokens, mask, keys[:1].expand(A))
    assert all((same_key[i] - same_key[0]).abs().mean() > 1e-4 for i in range(1, A))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_is_diffusers_own_ddpm(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(sampler="ddpm", sampling_steps=10, prediction=prediction, schedule="linear")
    _, tokens, mask, keys = _batch(model)

    streams = iter(range(1, 11))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **_: key_noise(keys, next(streams), shape[1:]))
    reference = diffusers.DDPMScheduler(prediction_type=prediction, timestep_spacing="trailing")
    reference.set_timesteps(10)
    x = key_noise(keys, 0, (3, S, S))
    with torch.no_grad():
        for level in reference.timesteps:
            prediction_now = model._predict(x, level.expand(A), tokens, mask)
            x = reference.step(prediction_now, int(level), x).prev_sample
    torch.testing.assert_close(model.sample(tokens, mask, keys), x.clamp(-1, 1), rtol=1e-4, atol=1e-4)


def test_guidance_goes_from_the_unconditional_through_the_conditional_prediction() -> None:
    model = _model(guidance=2.5, prediction="sample", sampling_steps=1)
    _, tokens, mask, keys = _batch(model)
    x, levels = key_noise(keys, 0, (3, S, S)), torch.full((A,), 999)
    with torch.no_grad():
        conditional = model._predict(x, levels, tokens, mask)
        unconditional = model.unet(x, levels, model.null.expand(A, 1, -1)).sample
    expected = (unconditional + 2.5 * (conditional - unconditional)).clamp(-1, 1)
    torch.testing.assert_close(model.sample(tokens, mask, keys), expected)
    assert (expected - conditional.clamp(-1, 1)).abs().max() > 1e-3


def test_nothing_waits_for_the_device() -> None:
    model = _model(sampling_steps=1, sampler="ddpm", guidance=2.0)
    batch = _batch(model)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # refuses to tell what is in a tensor
        pixels, tokens, mask, keys = map(mode.from_tensor, batch)
        assert model.loss(pixels, tokens, mask).shape == ()
        assert model.denoising_error(pixels, tokens, mask, keys).shape == (A,)
        assert model.sample(tokens, mask, keys).shape == (A, 3, S, S)


# -- noise by key ---------------------------------------------------------------------------------------------------


def test_noise_by_key_is_standard_normal_and_independent() -> None:
    noise = torch.cat([key_noise(torch.arange(200), stream, (3, 4, 4)) for stream in range(4)]).double().numpy()
    assert noise.shape == (800, 3, 4, 4)
    assert np.isfinite(noise).all()
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    flat = noise.reshape(800, -1)
    # Of rows (keys and streams) and of columns: correlations of 48 and of 800 independent draws.
    for matrix, draws in ((flat, 48), (flat.T, 800)):
        correlation = np.corrcoef(matrix)[np.triu_indices(len(matrix), 1)]
        assert abs(correlation.std() * math.sqrt(draws) - 1) < 0.1
        assert abs(correlation).max() < 6.5 / math.sqrt(draws)


def test_noise_by_key_is_split_mix_64() -> None:
    """What a key gives must never change: figures of other versions would no longer compare."""

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    gamma = 0x9E3779B97F4A7C15
    assert mix(gamma) == 0xE220A8397B1DCDAF  # the published first output of seed 0
    for key in (0, 7, -1, 2**62):
        start = mix((mix((key + gamma) % 2**64) + (3 * gamma & 2**63 - 1)) % 2**64)
        bits = [mix((start + i * gamma) % 2**64) for i in range(1, 6)]
        expected = [
            math.sqrt(-2 * math.log(((b >> 40) + 0.5) / 2**24)) * math.cos(2 * math.pi * (b & 0xFFFFFF) / 2**24)
            for b in bits
        ]
        torch.testing.assert_close(
            key_noise(torch.tensor([key]), 3, (5,))[0], torch.tensor(expected), atol=2e-6, rtol=1e-5
        )


# -- learning -------------------------------------------------------------------------------------------------------


def test_learns_to_draw_what_its_token_says_and_not_without_it() -> None:
    """Four pictures, a coloured quarter each; sampled under each token the nearest is the right one, and with the
    tokens masked it is not."""
    pictures = torch.ones(4, 3, S, S)
    half = S // 2
    for i, colour in enumerate([(1, -1, -1), (-1, 1, -1), (-1, -1, 1), (1, 1, -1)]):
        top, left = half * (i // 2), half * (i % 2)
        pictures[i, :, top : top + half, left : left + half] = torch.tensor(colour, dtype=torch.float32)[:, None, None]
    model = _model(sampling_steps=10)
    names = nn.Embedding(4, model.width)
    optimiser = torch.optim.AdamW([*model.parameters(), *names.parameters()], lr=5e-3)
    which = torch.arange(8) % 4
    for _ in range(80):
        loss = model.loss(pictures[which], names(which)[:, None], torch.ones(8, 1, dtype=torch.bool))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    which = torch.arange(16) % 4
    tokens = names(which)[:, None].detach()

    def share_right(shown: bool) -> float:
        drawn = model.sample(tokens, torch.full((16, 1), shown), torch.arange(16))
        distances = (drawn[:, None] - pictures).square().mean(dim=(2, 3, 4))
        return (distances.argmin(1) == which).float().mean().item()

    assert share_right(True) == 1
    assert share_right(False) <= 0.5


# -- pipelines ------------------------------------------------------------------------------------------------------


def _pipeline_unet(channels: int, **changes: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": (16, 16),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 24,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
            **changes,
        }
    )


def _save(folder: Path, unet: nn.Module, vae: nn.Module | None = None, kind: str | None = None) -> Path:
    """As save_pretrained of a whole pipeline lays it out; without its text encoder, which is not asked for."""
    scheduler = diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    for name, part in (("unet", unet), ("vae", vae), ("scheduler", scheduler)):
        index[name] = [None, None] if part is None else ["diffusers", type(part).__name__]
        if part is not None:
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=8,
        scaling_factor=0.5,
    )


@pytest.fixture(scope="module")
def latent_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    return _save(tmp_path_factory.mktemp("latent"), _pipeline_unet(4), _vae())


def test_a_pipelines_parts_are_loaded_and_diffuse_its_latents(latent_pipeline: Path) -> None:
    options = DiffusionOptions(model=str(latent_pipeline), size=16, sampling_steps=2)
    check_diffusion(options)
    model = ConditionalDiffusion(options)
    assert model.width == 24
    saved = diffusers.UNet2DConditionModel.from_pretrained(latent_pipeline, subfolder="unet")
    torch.testing.assert_close(model.unet.state_dict(), saved.state_dict(), rtol=0, atol=0)

    pixels, tokens, mask, keys = _batch(model)
    torch.manual_seed(7)
    loss = model.loss(pixels, tokens, mask)
    vae = diffusers.AutoencoderKL.from_pretrained(latent_pipeline, subfolder="vae")
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean * 0.5
    torch.manual_seed(7)
    noise, levels = torch.randn(A, 4, 8, 8), torch.randint(1000, (A,))
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    by_hand = _errors_by_hand(model, latents, noise, levels, tokens, mask, a)
    torch.testing.assert_close(loss, by_hand.sum(), rtol=2e-5, atol=0)
    drawn = model.sample(tokens, mask, keys)
    assert drawn.shape == (A, 3, 16, 16)
    assert drawn.abs().max() <= 1


def test_latents_are_not_clipped_as_pixels_are(latent_pipeline: Path) -> None:
    model = ConditionalDiffusion(DiffusionOptions(model=str(latent_pipeline), size=16, sampling_steps=1))
    _, tokens, mask, keys = _batch(model)
    with torch.no_grad():
        x, levels = key_noise(keys, 0, (4, 8, 8)), torch.full((A,), 999)
        a = float(np.prod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
        clean = (x - math.sqrt(1 - a) * model._predict(x, levels, tokens, mask)) / math.sqrt(a)
        assert clean.abs().max() > 2
        # This pipeline's schedule ends at its first noise level, not at none.
        first = 1 - 0.00085
        noise = (x - math.sqrt(a) * clean) / math.sqrt(1 - a)
        expected = model.vae.decode((math.sqrt(first) * clean + math.sqrt(1 - first) * noise) / 0.5).sample
    torch.testing.assert_close(model.sample(tokens, mask, keys), expected.clamp(-1, 1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tuning", ["full", "frozen"])
def test_tuning_says_what_of_a_pipeline_trains(latent_pipeline: Path, tuning: str) -> None:
    model = ConditionalDiffusion(DiffusionOptions(model=str(latent_pipeline), size=16, tuning=tuning))
    pixels, tokens, mask, _ = _batch(model)
    model.loss(pixels, tokens.requires_grad_(), mask).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    unet = {f"unet.{name}" for name, _ in model.unet.named_parameters()}
    assert trained == ({"null"} if tuning == "frozen" else {"null", *unet})
    assert tokens.grad is not None
    assert tokens.grad.any()


def test_a_pipeline_without_autoencoder_diffuses_pixels(tmp_path: Path) -> None:
    model = ConditionalDiffusion(DiffusionOptions(model=str(_save(tmp_path, _pipeline_unet(3))), sampling_steps=1))
    _, tokens, mask, keys = _batch(model)
    assert model.vae is None
    assert model.sample(tokens, mask, keys).shape == (A, 3, 32, 32)


def _unconditional(folder: Path) -> Path:
    return _save(
        folder,
        diffusers.UNet2DModel(
            block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
        ),
    )


def _no_unet(folder: Path) -> Path:
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["diffusers", "Flux"]}')
    return folder


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (_unconditional, "needed a pipeline with a UNet2DConditionModel.*its unet is a UNet2DModel"),
        (_no_unet, "needed a pipeline with a UNet2DConditionModel.*it has no unet"),
        (lambda folder: folder, "cannot be read as a diffusers pipeline .*: .*model_index.json"),
        (
            lambda f: _save(f, _pipeline_unet(3, class_embed_type="timestep")),
            "needs more than one kind of token .class_embed_type=timestep",
        ),
        (
            lambda f: _save(f, _pipeline_unet(3, cross_attention_dim=(24, 32))),
            r"needs more than one kind of token .cross_attention_dim=\[24, 32\]",
        ),
        (
            lambda f: _save(f, _pipeline_unet(4, in_channels=9), _vae()),
            "turns 9 channels into 4, and its latents have 4",
        ),
        (lambda f: _save(f, _pipeline_unet(4)), "turns 4 channels into 4, and its pictures have 3"),
    ],
)
def test_a_pipeline_that_does_not_fit_is_told_at_the_door(
    save: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    options = DiffusionOptions(model=str(save(tmp_path)))
    with pytest.raises(InputError, match=message):
        check_diffusion(options)
    with pytest.raises(InputError, match=message):
        ConditionalDiffusion(options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 18}, "size must be a multiple of 4 for it, got 18"),
        ({"sampling_steps": 30}, "must divide .*1000; got 30"),
    ],
)
def test_what_does_not_suit_a_pipeline_is_told_at_the_door(
    latent_pipeline: Path, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_diffusion(DiffusionOptions(model=str(latent_pipeline), **{"size": 16, **changes}))


def test_damaged_and_foreign_weights_are_told(tmp_path: Path) -> None:
    folder = _save(tmp_path, _pipeline_unet(3))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    _pipeline_unet(3, block_out_channels=(32, 32)).save_pretrained(tmp_path / "other")
    for content in ((tmp_path / "other" / weights.name).read_bytes(), b"damaged", None):
        weights.unlink()
        if content is not None:
            weights.write_bytes(content)
        with pytest.raises(InputError, match=f"{tmp_path}: cannot be read as a diffusers pipeline"):
            ConditionalDiffusion(DiffusionOptions(model=str(folder)))
        weights.touch()


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_told(model: str) -> None:
    with pytest.raises(InputError, match="no such folder; needed one that holds a diffusers pipeline"):
        check_diffusion(DiffusionOptions(model=model))


def test_a_hub_id_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="some/one: no such folder, and it cannot be fetched"):
        check_diffusion(DiffusionOptions(model="some/one"))


def test_a_relative_path_is_found_from_elsewhere(
    latent_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(latent_pipeline.parent)
    (tmp_path / "scratch").mkdir()
    options = DiffusionOptions(model=latent_pipeline.name, size=16)
    monkeypatch.chdir(tmp_path)
    check_diffusion(options)
    assert DiffusionOptions().model == "scratch"


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_diffusion(DiffusionOptions())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'optimag_dist\[generate\]'"):
        check_diffusion(DiffusionOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (16, 24)}, "multiples of 16"),
        ({"channels": (32,)}, "at least 2 items"),
        ({"channels": (16, 32, 32), "size": 34}, "size must be a multiple of 4 for 3 levels, got 34"),
        ({"sampling_steps": 30}, "must divide the number of noise levels, 1000; got 30"),
        ({"guidance": 0.5}, "greater than or equal to 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionOptions(**options)
