"""The stock pipelines' own arguments, wrong: one typed line before the loop begins, with a face and without."""

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from diffusers import LCMScheduler

from facesnap_diffusers import FaceSnapInpaintPipeline, FaceSnapXLPipeline, InputError


PICTURE = PIL.Image.new("RGB", (32, 32))
LATENTS = torch.randn(1, 4, 16, 16)
TEXT = torch.zeros(1, 77, 32)
CALL = {"prompt": "a cat", "num_inference_steps": 2, "output_type": "pt", "height": 32, "width": 32}


@pytest.fixture(scope="module")
def pipe():
    return tiny.with_adapter(tiny.sd_pipeline())


@pytest.fixture(scope="module")
def xl():
    return tiny.with_adapter(tiny.xl_pipeline())


class Nobody:
    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def analyze(self, image):
        return []


@pytest.fixture(scope="module")
def inpaint():
    pipe = tiny.with_adapter(tiny.sd_pipeline(), FaceSnapInpaintPipeline)
    pipe.face_analyzer = Nobody()
    return pipe


def returns(value):
    return {"callback_on_step_end": lambda pipe, step, timestep, tensors: value}


#: arguments, what the message says
WRONG = [
    ({"clip_skip": 4}, "clip_skip must be at most 3"),
    ({"callback_on_step_end": 5}, "callback_on_step_end must be a function"),
    ({"callback_on_step_end": lambda step, timestep: {}}, "must take four arguments"),
    (returns(None), "must return a dictionary of tensors"),
    (returns(5), "must return a dictionary of tensors"),
    (returns({"latents": "x"}), "must return latents as a tensor"),
    (returns({"latents": LATENTS[..., :4]}), "must return latents of shape"),
    (returns({"latents": LATENTS.double()}), "must return latents of shape .* torch.float32, got .* torch.float64"),
    ({**returns({}), "callback_on_step_end_tensor_inputs": 5}, "must be a list of names"),
    ({"callback": 5}, "callback must be a function"),
    ({"latents": LATENTS.expand(2, -1, -1, -1)}, "latents are those of 2 images, the call makes 1"),
    ({"latents": LATENTS * torch.nan}, "latents has values that are not finite"),
    ({"latents": LATENTS.numpy()}, "latents must be a torch.Tensor"),
    ({"latents": LATENTS.to("meta")}, "latents must be a dense tensor"),
    ({"latents": LATENTS.to_sparse()}, "latents must be a dense tensor"),
    ({"generator": [tiny.seeded(), tiny.seeded()]}, "generator has 2 entries for 1 images"),
    ({"generator": [None]}, "generator must be a torch.Generator"),
    ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 entries for 1 prompt"),
    ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "negative_prompt has 1 entries for 2 prompts"),
    ({"negative_prompt": "a", "negative_prompt_embeds": TEXT}, "negative_prompt= and negative_prompt_embeds="),
    ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
    ({"prompt": None, "prompt_embeds": TEXT * torch.nan}, "prompt_embeds has values that are not finite"),
    ({"prompt": None, "prompt_embeds": TEXT[..., :9]}, "prompt_embeds have width 9, this base model takes 32"),
    ({"ip_adapter_image": PICTURE}, r"none is loaded; call load_ip_adapter\(\)"),
    ({"ip_adapter_image_embeds": [TEXT]}, r"none is loaded; call load_ip_adapter\(\)"),
    ({"output_type": "jpeg"}, "output_type must be one of pil, np, pt, latent"),
    ({"cross_attention_kwargs": {5: 1}}, "with strings as keys"),
    ({"cross_attention_kwargs": {"scale": "x"}}, "scale must be a finite number"),
    ({"guidance_rescale": "x"}, "guidance_rescale must be a number"),
    ({"timesteps": [5, 1]}, "timesteps= is not for DDIMScheduler"),
    ({"timesteps": [5, 1], "sigmas": [1.0]}, "timesteps= and sigmas= are both given"),
]


def test_sizes_that_the_stock_pipeline_refuses(pipe):
    with pytest.raises(InputError, match="height must be a positive multiple of 8, got 12"):
        pipe(**{**CALL, "height": 12})
    assert pipe(**{**CALL, "height": 12}, identity=tiny.identity()).images.shape == (1, 3, 12, 32)


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong(pipe, who, arguments, message):
    with pytest.raises(InputError, match=message):
        pipe(**{**CALL, **who, **arguments})


STYLE = torch.ones(2, 1, 16)
WRONG_IMAGE_PROMPTS = [
    ({}, "an IP-Adapter is loaded; pass ip_adapter_image= or"),
    ({"ip_adapter_image": PICTURE, "ip_adapter_image_embeds": [STYLE]}, "are both given"),
    ({"ip_adapter_image_embeds": STYLE}, "must be a list of 1 tensors"),
    ({"ip_adapter_image_embeds": [STYLE, STYLE]}, "must be a list of 1 tensors"),
    ({"ip_adapter_image_embeds": [STYLE[0]]}, r"must have shape \(batch, images, width\)"),
    ({"ip_adapter_image_embeds": [STYLE[:1]]}, "has 1 entries; with guidance"),
    ({"ip_adapter_image_embeds": [STYLE[..., :9]]}, "have width 9, the IP-Adapter that is loaded takes 16"),
    ({"ip_adapter_image_embeds": [STYLE * torch.nan]}, "has values that are not finite"),
    ({"masks": 5}, "ip_adapter_masks must be a list of 1 tensors"),
    ({"masks": [torch.ones(32, 32)]}, r"must have shape \(1, 1, height, width\), got \(32, 32\)"),
    ({"masks": [torch.ones(1, 2, 32, 32)]}, r"must have shape \(1, 1, height, width\)"),
    ({"masks": [torch.full((1, 1, 4, 4), torch.nan)]}, "has values that are not finite"),
]


@pytest.fixture(scope="module")
def with_ip_adapter():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    pipe.register_modules(image_encoder=tiny.image_encoder())
    weights = third_party.ip_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize(
    ("arguments", "message"), WRONG_IMAGE_PROMPTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_wrong_image_prompts(with_ip_adapter, who, arguments, message):
    arguments = dict(arguments)
    if "masks" in arguments:
        masks = {"ip_adapter_masks": arguments.pop("masks")}
        arguments = {"ip_adapter_image_embeds": [STYLE], "cross_attention_kwargs": masks}
    with pytest.raises(InputError, match=message):
        with_ip_adapter(**{**CALL, **who, **arguments})


@pytest.mark.parametrize("timesteps", [[], [1, 5], [5000, 1], "x", ["a"], 5])
def test_timesteps_that_the_scheduler_does_not_take(pipe, timesteps):
    other = tiny.facesnap(pipe, type(pipe))
    other.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="timesteps"):
        other(**{**CALL, "num_inference_steps": None, "timesteps": timesteps}, identity=tiny.identity())
    assert other(**{**CALL, "num_inference_steps": None, "timesteps": [999, 499]}).images.isfinite().all()


XL_TEXT = {"prompt_embeds": torch.zeros(1, 77, 64), "negative_prompt_embeds": torch.zeros(1, 77, 64)}
WRONG_XL = [
    ({"clip_skip": 3}, "clip_skip must be at most 2"),
    ({"prompt": ["a", "b"], "prompt_2": ["c"]}, "prompt_2 has 1 entries for 2 prompts"),
    ({"prompt": None, **XL_TEXT}, "prompt_embeds= and pooled_prompt_embeds= go together"),
    (
        {"prompt": None, **XL_TEXT, "pooled_prompt_embeds": torch.zeros(2, 32)},
        "pooled_prompt_embeds has 2 entries, prompt_embeds 1",
    ),
    ({"prompt": None, **XL_TEXT, "pooled_prompt_embeds": torch.zeros(1, 5)}, "pooled_prompt_embeds have width 5"),
    ({"original_size": 5}, "original_size must be two whole numbers"),
    ({"target_size": (1, 2, 3)}, "target_size must be two whole numbers"),
    ({"crops_coords_top_left": ("a", "b")}, "crops_coords_top_left must be a whole number"),
]


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize(("arguments", "message"), WRONG_XL, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_on_xl(xl, who, arguments, message):
    assert isinstance(xl, FaceSnapXLPipeline)
    with pytest.raises(InputError, match=message):
        xl(**{**CALL, **who, **arguments})


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": [PICTURE] * 2}, "image has 2 pictures for 1 images"),
        ({"mask_image": [PICTURE] * 3, "prompt": ["a", "b"]}, "mask_image has 3 pictures for 2 images"),
        ({"image": LATENTS}, "image= are latents"),
        ({"latents": LATENTS[..., :8, :8]}, "latents of 8×8"),
    ],
)
def test_wrong_pictures(inpaint, who, arguments, message):
    with pytest.raises(InputError, match=message):
        inpaint(**{**CALL, "image": PICTURE, "mask_image": PICTURE, **who, **arguments})


def test_latents_take_the_dtype_of_the_pipeline(pipe):
    half = LATENTS.half()
    call = {**CALL, "identity": tiny.identity()}
    assert torch.equal(pipe(**call, latents=half).images, pipe(**call, latents=half.float()).images)


def test_what_a_callback_raises_is_its_own(pipe):
    def callback(pipe, step, timestep, tensors):
        raise KeyError("of the caller")

    with pytest.raises(KeyError, match="of the caller"):
        pipe(**CALL, callback_on_step_end=callback)


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize("told", ["what it is given", "the pipeline that was called"])
def test_a_callback_stops_a_call_and_no_later_one(pipe, who, told):
    call = {**CALL, **who, "num_inference_steps": 4, "output_type": "latent", "latents": LATENTS}
    steps, seen = [], []

    def callback(given, step, timestep, tensors):
        steps.append(step)
        seen.append(tensors["latents"].clone())
        if step == 1:
            (given if told == "what it is given" else pipe)._interrupt = True
        return tensors

    stopped = pipe(**call, callback_on_step_end=callback).images
    assert steps == [0, 1] and torch.equal(stopped, seen[1]) and pipe.interrupt
    whole = pipe(**call).images
    assert not pipe.interrupt
    assert not np.allclose(whole, stopped)


def test_rescaled_guidance_with_a_face_is_that_of_the_stock_pipeline(pipe, xl):
    """With scales so small that the face changes nothing, the stock pipeline says what is right."""
    nearly_off = {"identity": tiny.identity(), "identity_scale": 1e-9, "landmark_scale": 1e-9}
    for of_family, stock in ((pipe, tiny.sd_pipeline()), (xl, tiny.xl_pipeline())):
        call = {**CALL, "guidance_scale": 7.5, "latents": LATENTS}
        expected = stock(**call, guidance_rescale=0.7).images
        tiny.assert_same_image(of_family(**call, **nearly_off, guidance_rescale=0.7).images, expected, 1e-4)
        assert (of_family(**call, **nearly_off).images - expected).abs().max() > 1e-3
