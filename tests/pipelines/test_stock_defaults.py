"""Calls without a face are those of the stock pipelines without ControlNet: their defaults, and arguments that only they take."""

from inspect import signature

import PIL.Image
import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler

from facesnap_diffusers import FaceSnapImg2ImgPipeline, FaceSnapInpaintPipeline, FaceSnapXLInpaintPipeline, InputError

from .test_stock_checks import MASK, PICTURE, STOCK


pytestmark = pytest.mark.slow


def pair(cls, **changes):
    """The stock pipeline and ours on the same components, and the arguments of their task."""
    base = tiny.xl_pipeline() if "XL" in cls.__name__ else tiny.sd_pipeline()
    base.register_modules(**changes)
    pipe = tiny.with_adapter(base, cls)
    arguments = {"prompt": "a cat", "output_type": "pt", "num_inference_steps": 4}
    if pipe._takes_picture:
        arguments["image"] = PICTURE
    if "Inpaint" in cls.__name__:
        arguments |= {"mask_image": MASK, "height": 32, "width": 32}
    return tiny._quiet(STOCK[cls].from_pipe(base)), pipe, arguments


def controlnet_class(cls):
    return next(base for base in cls.__mro__ if base.__module__.startswith("diffusers."))


def image(pipe, arguments, **more):
    return pipe(**arguments, **more, generator=tiny.seeded()).images


@pytest.mark.parametrize("cls", STOCK)
def test_defaults(cls):
    """Such as XL's strength of 0.3 in image-to-image and guidance of 7.5 in inpainting, where those with ControlNet differ."""
    stock, pipe, arguments = pair(cls)
    assert torch.equal(image(pipe, arguments), image(stock, arguments))


@pytest.mark.parametrize("cls", STOCK)
def test_arguments_that_only_they_take(cls):
    stock, pipe, arguments = pair(cls, scheduler=EulerDiscreteScheduler.from_config(tiny.scheduler().config))
    plain = image(stock, arguments)
    values = {
        "timesteps": [901, 701, 501, 301],
        "sigmas": [5.0, 3.0, 2.0, 1.0, 0.5],
        "denoising_start": 0.5,
        "denoising_end": 0.9,
    }
    taken = [name for name in values if name in signature(STOCK[cls].__call__).parameters]
    assert {"timesteps", "sigmas"} <= {*taken}
    for name in taken:
        expected = image(stock, arguments, **{name: values[name]})
        assert torch.equal(image(pipe, arguments, **{name: values[name]}), expected), name
        assert (expected - plain).abs().max() > 1e-4, name
        face = {**arguments, name: values[name], "identity": tiny.identity()}
        if name in signature(controlnet_class(cls).__call__).parameters:
            assert image(pipe, face).isfinite().all(), name
        else:
            with pytest.raises(InputError, match=f"{name}= works only without a face and without ControlNets"):
                image(pipe, face)


@pytest.mark.parametrize("cls", [cls for cls in STOCK if "Inpaint" in cls.__name__])
def test_latents_of_the_masked_picture(cls):
    stock, pipe, arguments = pair(cls)
    arguments["masked_image_latents"] = torch.zeros(1, 4, 16, 16)
    assert torch.equal(image(pipe, arguments), image(stock, arguments))


@pytest.mark.parametrize("cls", [cls for cls in STOCK if cls._takes_picture])
def test_too_few_steps_for_the_strength(cls):
    """The default of the stock pipeline counts too, and timesteps of the caller's own."""
    _, pipe, arguments = pair(cls, scheduler=EulerDiscreteScheduler.from_config(tiny.scheduler().config))
    for more in ({"strength": 0.2}, {"sigmas": [5.0, 1.0], "strength": 0.5}, {"timesteps": [901, 1], "strength": 0.4}):
        with pytest.raises(InputError, match="leaves none; raise one of them"):
            image(pipe, arguments, **more)


@pytest.mark.parametrize("cls", [cls for cls in STOCK if cls._takes_picture and "XL" in cls.__name__])
def test_a_part_of_the_steps_that_is_empty(cls):
    _, pipe, arguments = pair(cls)
    for more, message in (
        ({"denoising_start": 0.999}, "denoising_start 0.999 leaves none of the 4 steps"),
        ({"denoising_start": 0.8, "denoising_end": 0.5}, "denoising_start 0.8 is not before denoising_end 0.5"),
        ({"denoising_start": "x"}, "denoising_start must be a finite number"),
    ):
        with pytest.raises(InputError, match=message):
            image(pipe, arguments, **more)


@pytest.mark.parametrize("cls", [FaceSnapImg2ImgPipeline, FaceSnapInpaintPipeline])
def test_a_unet_that_takes_the_guidance_scale(cls):
    """Distilled into a latent consistency model, with an adapter of the model that it was distilled from."""
    torch.manual_seed(0)
    distilled = tiny.sd_unet(time_cond_proj_dim=8).eval()
    stock, pipe, arguments = pair(cls)
    stock.register_modules(unet=distilled)
    pipe.register_modules(unet=distilled)
    assert torch.equal(image(pipe, arguments), image(stock, arguments))
    with pytest.raises(InputError, match="takes the guidance scale as an input"):
        image(pipe, arguments, identity=tiny.identity())


@pytest.mark.parametrize("cls", [cls for cls in STOCK if "Img2Img" in cls.__name__])
def test_latents_as_the_picture(cls):
    stock, pipe, arguments = pair(cls)
    arguments["image"] = torch.randn(1, 4, 16, 16, generator=tiny.seeded())
    assert torch.equal(image(pipe, arguments), image(stock, arguments))


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
def test_a_mask_that_no_loop_applies_is_refused(who):
    pipe = tiny.with_adapter(tiny.xl_pipeline(), FaceSnapXLInpaintPipeline)
    pipe.unet.register_to_config(in_channels=6)
    with pytest.raises(InputError, match="inpainting takes UNets of 4 or 9 channels, this one has 6"):
        pipe("a cat", image=PICTURE, mask_image=PIL.Image.new("L", PICTURE.size, 255), **who)
