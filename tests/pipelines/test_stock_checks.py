"""What diffusers checks of every pipeline, on all six with and without a face: each test runs the public call twice."""

from inspect import Parameter, signature

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderTiny,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from facesnap_diffusers import (
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline,
    FaceSnapXLPipeline,
    InputError,
)


pytestmark = pytest.mark.slow


PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
MASK = PIL.Image.new("L", (32, 32), 255)

STOCK = {
    FaceSnapPipeline: StableDiffusionPipeline,
    FaceSnapImg2ImgPipeline: StableDiffusionImg2ImgPipeline,
    FaceSnapInpaintPipeline: StableDiffusionInpaintPipeline,
    FaceSnapXLPipeline: StableDiffusionXLPipeline,
    FaceSnapXLImg2ImgPipeline: StableDiffusionXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline: StableDiffusionXLInpaintPipeline,
}


class Nobody:
    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def analyze(self, image):
        return []


class Call:
    """A pipeline with the arguments of its task; `pipe` may be another one on which the same call is made."""

    def __init__(self, cls, face):
        self.cls, self.face = cls, face
        self.pipe = self.make()

    def make(self):
        pipe = tiny.facesnap(tiny.xl_pipeline() if "XL" in self.cls.__name__ else tiny.sd_pipeline(), self.cls)
        tiny.add_adapter(pipe)
        pipe.face_analyzer = Nobody()
        return pipe

    def arguments(self, **changes):
        values = {"num_inference_steps": 2, "output_type": "pt", "guidance_scale": 3.0, "prompt": "a cat"}
        if "Img2Img" in self.cls.__name__ or "Inpaint" in self.cls.__name__:
            values |= {"image": PICTURE, "strength": 1.0}
        if "Img2Img" not in self.cls.__name__:
            values |= {"height": 32, "width": 32}
        if "Inpaint" in self.cls.__name__:
            values["mask_image"] = MASK
        if self.face:
            values["identity"] = tiny.identity()
        return {**values, "generator": tiny.seeded(), **changes}

    def __call__(self, pipe=None, **changes):
        images = (pipe or self.pipe)(**self.arguments(**changes)).images
        return images


@pytest.fixture(
    scope="module",
    params=[(cls, face) for cls in STOCK for face in (False, True)],
    ids=lambda param: f"{param[0].__name__} {'with' if param[1] else 'without'} a face",
)
def call(request):
    return Call(*request.param)


@pytest.fixture(scope="module")
def expected(call):
    return call()


def close(images, expected, atol=1e-4):
    torch.testing.assert_close(images, expected, atol=atol, rtol=0)


def test_same_seed_same_image_and_another_seed_another(call, expected):
    assert torch.equal(call(), expected)
    assert (call(generator=torch.Generator().manual_seed(1)) - expected).abs().max() > 1e-3


def test_a_batch_is_its_single_images(call):
    prompts = ["a cat", "a dog on a hill"]
    generators = [[torch.Generator().manual_seed(i) for i in range(2)] for _ in range(2)]
    arguments = call.arguments()
    pictures = {name: [arguments[name]] * 2 for name in ("image", "mask_image") if name in arguments}
    together = call(prompt=prompts, generator=generators[0], **pictures)
    for image, prompt, generator in zip(together, prompts, generators[1]):
        close(image, call(prompt=prompt, generator=generator)[0])


@pytest.mark.parametrize(("prompts", "images"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_number_of_images(call, prompts, images):
    prompt = ["a cat"] * prompts if prompts > 1 else "a cat"
    assert len(call(prompt=prompt, num_images_per_prompt=images, num_inference_steps=1)) == prompts * images


def test_tuples_hold_what_objects_hold(call, expected):
    images = call.pipe(**call.arguments(return_dict=False))
    assert isinstance(images, tuple) and torch.equal(images[0], expected)


def test_outputs(call, expected):
    arrays = call(output_type="np")
    close(torch.from_numpy(np.asarray(arrays)).permute(0, 3, 1, 2), expected, atol=1e-5)
    picture = np.asarray(call(output_type="pil")[0]) / 255
    close(torch.from_numpy(picture).permute(2, 0, 1).float(), expected[0], atol=0.5 / 255 + 1e-5)
    assert call(output_type="latent").shape == (1, 4, 16, 16)


def test_latents_may_be_given(call, expected):
    if "Img2Img" in call.cls.__name__:
        pytest.skip("image-to-image makes its latents of the picture")
    latents = torch.randn((1, 4, 16, 16), generator=tiny.seeded())
    if "Inpaint" not in call.cls.__name__:
        close(call(latents=latents), expected)
    assert torch.equal(call(latents=latents), call(latents=latents))


def test_without_guidance_the_negative_prompt_does_not_count(call, expected):
    alone = call(guidance_scale=1.0)
    assert torch.equal(call(guidance_scale=1.0, negative_prompt="a dog"), alone)
    assert (alone - expected).abs().max() > 1e-4
    assert (call(negative_prompt="a dog in a field") - expected).abs().max() > 1e-6


def test_every_callback_input(call, expected):
    names = [name for name in call.pipe._callback_tensor_inputs if name in ("latents", "prompt_embeds")]
    steps = []

    def callback(pipe, step, timestep, tensors):
        assert set(tensors) == set(names)
        steps.append(step)
        return tensors

    close(call(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names), expected)
    assert steps == [0, 1]

    def blank(pipe, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else tensors

    latents = call(callback_on_step_end=blank, output_type="latent")
    assert not latents.any()


def test_arguments_have_names(call):
    stock = set(signature(STOCK[call.cls].__mro__[0].__call__).parameters) & {"prompt", "generator", "output_type"}
    assert stock <= set(signature(call.cls.__call__).parameters)
    ours = {"identity", "face_image", "pose", "ip_adapter_image", "ip_adapter_image_embeds", "callback_on_step_end"}
    assert ours <= set(signature(call.cls.__call__).parameters)
    optional = ("num_inference_steps", "num_images_per_prompt", "generator", "output_type", "return_dict")
    for name in optional:
        assert signature(call.cls.__call__).parameters[name].default is not Parameter.empty, name


def test_memory_settings_change_nothing(call, expected):
    pipe = call.make()
    pipe.enable_attention_slicing()
    close(call(pipe), expected)
    pipe.disable_attention_slicing()
    pipe.vae.enable_slicing()
    close(call(pipe), expected)
    pipe.vae.disable_slicing()
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert (call(pipe) - expected).abs().max() > 1e-4
    pipe.disable_freeu()
    close(call(pipe), expected)


@pytest.mark.parametrize("kind", ["model", "sequential", "group", "group of all parts"])
def test_offloading_changes_nothing(call, expected, kind):
    pipe = call.make()
    if kind == "group of all parts":
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules=["vae"])
        assert [is_group_offloaded(part) for part in (pipe.unet, pipe.ffrnet, pipe.vae)] == [True, True, False]
    elif kind == "group":
        pipe.unet.enable_group_offload(
            torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, use_stream=False
        )
    elif kind == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        # as `enable_sequential_cpu_offload` does, but text encoders: there accelerate fails where CPU and device are one
        kept = ("text_encoder", "text_encoder_2")
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module) and name not in (*kept, *pipe._exclude_from_cpu_offload):
                cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
        assert pipe.unet.conv_in.weight.is_meta and all(parameter.is_meta for parameter in pipe.ffrnet.parameters())
    close(call(pipe), expected)
    close(call(pipe), expected)


def is_group_offloaded(part):
    hooks = [module._diffusers_hook.hooks for module in part.modules() if hasattr(module, "_diffusers_hook")]
    return any("group_offloading" in names for names in hooks)


def test_dtypes_and_devices(call, expected):
    pipe = call.make().to(torch.bfloat16)
    kinds = {
        parameter.dtype
        for name in ("unet", "vae", "mixer", "ffrnet")
        for parameter in getattr(pipe, name).parameters()
    }
    assert kinds == {torch.bfloat16}
    half = call(pipe)
    assert half.isfinite().all() and (half.float() - expected).abs().mean() < 0.1
    assert pipe.to("cpu").device.type == "cpu"


def test_layerwise_casting(call):
    pipe = call.make()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert call(pipe).isfinite().all()


def test_saved_and_loaded(call, expected, tmp_path):
    pipe = call.make()
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert all(".fp16." in path.name for path in tmp_path.rglob("*.safetensors"))
    loaded = tiny._quiet(call.cls.from_pretrained(tmp_path, variant="fp16"))
    loaded.face_analyzer = Nobody()
    close(call(loaded), expected)
    for name in loaded._optional_components:
        if name not in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
            assert (getattr(loaded, name) is None) == (getattr(pipe, name) is None), name
    with pytest.raises(ValueError, match="variant=no_such"):
        call.cls.from_pretrained(tmp_path, variant="no_such")


def test_dtype_of_each_part(call, tmp_path):
    call.pipe.save_pretrained(tmp_path)
    dtypes = {"unet": torch.bfloat16, "default": torch.float16}
    loaded = call.cls.from_pretrained(tmp_path, dtype=dtypes)
    for name, part in loaded.components.items():
        if isinstance(part, torch.nn.Module) and name not in ("landmark_predictor", "face_image_encoder"):
            assert part.dtype == dtypes.get(name, torch.float16), name


def test_without_its_optional_parts(call, tmp_path):
    pipe = call.make()
    pipe.unload_facesnap_adapter()
    pipe.save_pretrained(tmp_path)
    loaded = tiny._quiet(call.cls.from_pretrained(tmp_path))
    for name in (*loaded._optional_components, *pipe.components):
        assert (getattr(loaded, name) is None) == (getattr(pipe, name) is None), name
    arguments = call.arguments(identity=None)
    assert torch.equal(loaded(**arguments).images, pipe(**{**arguments, "generator": tiny.seeded()}).images)


def test_components_make_the_same_pipeline(call, expected):
    components = call.pipe.components
    modules, _ = call.pipe._get_signature_keys(call.cls)
    assert set(components) == set(modules) <= set(call.pipe.config)
    config = {} if "XL" in call.cls.__name__ else {"requires_safety_checker": False}
    pipe = tiny._quiet(call.cls(**components, **config))
    pipe.face_analyzer = Nobody()
    close(call(pipe), expected)


def test_a_prompt_encoded_before(call, expected):
    pipe, sdxl = call.pipe, "XL" in call.cls.__name__
    embeds = pipe.encode_prompt(
        prompt="a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    close(call(prompt=None, **dict(zip(names, embeds[: 4 if sdxl else 2]))), expected)


def test_text_encoders_alone_and_all_but_them(call, expected, tmp_path):
    """One pipeline that encodes prompts and nothing else, and another that has no text encoder."""
    call.pipe.save_pretrained(tmp_path)
    of_text = [name for name in call.pipe.components if name.startswith(("text_encoder", "tokenizer"))]
    encoder = call.cls.from_pretrained(tmp_path, **dict.fromkeys(set(call.pipe.components) - {*of_text}))
    embeds = encoder.encode_prompt("a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    rest = tiny._quiet(call.cls.from_pretrained(tmp_path, **dict.fromkeys(of_text)))
    rest.face_analyzer = Nobody()
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, embeds[: 4 if "XL" in call.cls.__name__ else 2]))
    close(call(rest, prompt=None, **given), expected)


def test_callbacks_see_and_set_every_tensor_that_the_pipeline_names(call):
    names, seen = (call.cls if call.face else STOCK[call.cls])._callback_tensor_inputs, []

    def callback(pipe, step, timestep, tensors):
        seen.append(set(tensors))
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    end = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    latents = call(**end, output_type="latent")
    assert seen == [set(names)] * call.pipe.num_timesteps
    assert latents.count_nonzero() == 0
    with pytest.raises(InputError, match="callback_on_step_end_tensor_inputs: 'nonsense' is not one of latents, "):
        call(**{**end, "callback_on_step_end_tensor_inputs": ["nonsense"]})


def test_the_progress_bar(call, capsys):
    call.pipe.set_progress_bar_config(disable=False)
    call()
    assert "2/2" in capsys.readouterr().err
    call.pipe.set_progress_bar_config(disable=True)
    call()
    assert not capsys.readouterr().err


def test_guidance_changed_in_a_callback(call, expected):
    def callback(pipe, step, timestep, tensors):
        pipe._guidance_scale += 1
        return tensors

    images = call(callback_on_step_end=callback)
    assert call.pipe.guidance_scale == 3.0 + call.pipe.num_timesteps
    assert (images - expected).abs().max() > 1e-5

    def end(pipe, step, timestep, tensors):
        pipe._guidance_scale = 7.0 if step == 0 else 3.0
        return tensors

    # one call whose first step is guided with 3 and whose second with 7
    close(call(callback_on_step_end=end, guidance_scale=3.0), by_hand(call, (3.0, 7.0)), atol=1e-3)


def by_hand(call, scales):
    """Each step guided with a scale of its own: by the UNet's outputs, put together before the scheduler sees them."""
    pipe, step, outputs = call.pipe, type(call.pipe.scheduler).step, []
    forward = pipe.unet.forward

    def unet(*args, **kwargs):
        output = forward(*args, **kwargs)
        outputs.append(output[0])
        return output

    def guided(self, model_output, *args, **kwargs):
        without_text, text = outputs[-1].chunk(2)
        scale = scales[len(outputs) - 1]
        return step(self, without_text + scale * (text - without_text), *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.unet, "forward", unet)
        patch.setattr(type(pipe.scheduler), "step", guided)
        return call(guidance_scale=3.0)


def test_fused_projections(call, expected):
    pipe = call.make()
    pipe.fuse_qkv_projections()
    close(call(pipe), expected)
    pipe.unfuse_qkv_projections()
    close(call(pipe), expected)


def test_vae_in_tiles(call, expected):
    pipe, decoded = call.make(), []
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 8
    pipe.vae.decoder.register_forward_hook(lambda module, latents, picture: decoded.append(picture.shape[-1]))
    images = call(pipe)
    assert images.shape == expected.shape and len(decoded) > 1 and max(decoded) <= 16


def test_another_vae(call, expected):
    pipe = call.make()
    torch.manual_seed(0)
    pipe.vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=4,
    ).eval()
    images = call(pipe)
    assert images.shape == expected.shape and images.isfinite().all()


def test_stock_ip_adapters(call, expected):
    """At a scale of 0 they change nothing; one and two of them, everywhere and under a mask, with and without guidance."""
    pipe = call.make()
    pipe.register_modules(image_encoder=tiny.image_encoder())
    weights = third_party.ip_adapter(pipe.unet)
    style = torch.randn(2, 1, 16, generator=tiny.seeded())
    half = torch.zeros(1, 1, 32, 32)
    half[..., :16] = 1
    for count in (1, 2):
        names = {"subfolder": [""] * count, "weight_name": [""] * count}
        pipe.load_ip_adapter([weights] * count, **names, image_encoder_folder=None)
        embeds, masks = [style] * count, {"ip_adapter_masks": [half] * count}
        pipe.set_ip_adapter_scale([0.0] * count)
        close(call(pipe, ip_adapter_image_embeds=embeds), expected)
        close(call(pipe, ip_adapter_image_embeds=embeds, cross_attention_kwargs=masks), expected)
        pipe.set_ip_adapter_scale([2.0] * count)
        everywhere = call(pipe, ip_adapter_image_embeds=embeds)
        masked = call(pipe, ip_adapter_image_embeds=embeds, cross_attention_kwargs=masks)
        assert (everywhere - expected).abs().max() > 1e-2 and (masked - expected).abs().max() > 1e-3
        assert (masked - everywhere).abs().max() > 1e-3
        alone = call(pipe, ip_adapter_image_embeds=[style[1:]] * count, guidance_scale=1.0)
        assert alone.shape == expected.shape and alone.isfinite().all()
        pipe.unload_ip_adapter()
        pipe.register_modules(image_encoder=tiny.image_encoder())


def test_there_and_back_with_from_pipe(call, expected):
    """Stock, ours, stock: configs, components and images stay as they were."""
    stock_cls = STOCK[call.cls]
    stock = tiny._quiet(stock_cls.from_pipe(call.pipe))
    ours = tiny._quiet(call.cls.from_pipe(stock))
    again = tiny._quiet(stock_cls.from_pipe(ours))
    for name, value in stock.config.items():
        if not name.startswith("_"):
            assert again.config[name] == value, name
    for name, component in stock.components.items():
        assert again.components[name] is component, name
    if not call.face:
        assert torch.equal(call(ours), expected)
    size = {"height": 32, "width": 32} if "height" in signature(stock_cls.__call__).parameters else {}
    arguments = {name: value for name, value in call.arguments(**size).items() if name != "identity"}
    assert torch.equal(stock(**arguments).images, again(**{**arguments, "generator": tiny.seeded()}).images)
    with_offload = call.make()
    with_offload.enable_model_cpu_offload(device="cpu")
    close(call(tiny._quiet(call.cls.from_pipe(with_offload))), expected)
