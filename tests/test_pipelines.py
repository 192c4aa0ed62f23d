"""The pipelines against the stock pipelines, on tiny real components."""

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from diffusers.hooks import apply_group_offloading
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from facesnap_diffusers import (
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline,
    FaceSnapXLPipeline,
    HeadPose,
    draw_landmarks,
)


STEPS = {"num_inference_steps": 2, "output_type": "pt", "height": tiny.SIZE, "width": tiny.SIZE}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def mask():
    pixels = np.zeros((64, 64), dtype=np.uint8)
    pixels[16:48, 16:48] = 255
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def sd():
    return tiny.sd_pipeline()


@pytest.fixture(scope="module")
def xl():
    return tiny.xl_pipeline()


def facesnap(stock, cls=None):
    cls = cls or (FaceSnapXLPipeline if hasattr(stock, "text_encoder_2") else FaceSnapPipeline)
    pipe = cls.from_pipe(stock)
    pipe.set_progress_bar_config(disable=True)
    tiny.add_adapter(pipe)
    return pipe


@pytest.fixture
def pipe(sd):
    return facesnap(sd)


@pytest.fixture
def pipe_xl(xl):
    return facesnap(xl)


def generate(pipe, prompt="a cat", **kwargs):
    return pipe(prompt, generator=seeded(), **{**STEPS, **kwargs}).images


#: pipeline, its stock counterpart, further arguments
VARIANTS = [
    (FaceSnapPipeline, None, {}),
    (FaceSnapImg2ImgPipeline, StableDiffusionImg2ImgPipeline, {"image": picture(), "strength": 0.8}),
    (
        FaceSnapInpaintPipeline,
        StableDiffusionInpaintPipeline,
        {"image": picture(), "mask_image": mask(), "strength": 0.9},
    ),
    (FaceSnapXLPipeline, None, {}),
    (FaceSnapXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline, {"image": picture(), "strength": 0.8}),
    (
        FaceSnapXLInpaintPipeline,
        StableDiffusionXLInpaintPipeline,
        {"image": picture(), "mask_image": mask(), "strength": 0.9},
    ),
]


@pytest.mark.parametrize(("cls", "stock_cls", "arguments"), VARIANTS, ids=lambda value: getattr(value, "__name__", ""))
class TestEveryPipeline:
    def test_is_plain_stable_diffusion_unless_a_face_is_in_play(self, cls, stock_cls, arguments, sd, xl):
        """Without an adapter, with one but no face, at both scales 0, and after unload: bit for bit."""
        base = xl if "XL" in cls.__name__ else sd
        stock = base if stock_cls is None else stock_cls.from_pipe(base)
        stock.set_progress_bar_config(disable=True)
        size = {} if stock_cls and "Img2Img" in stock_cls.__name__ else {"height": 64, "width": 64}
        call = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 5.0, **arguments}
        expected = stock("a cat", generator=seeded(), **call, **size).images

        pipe = cls.from_pipe(base)
        pipe.set_progress_bar_config(disable=True)

        def images(**kwargs):
            return pipe("a cat", generator=seeded(), **call, **kwargs).images

        assert torch.equal(images(), expected)
        tiny.add_adapter(pipe)
        assert torch.equal(images(), expected)
        with_face = images(identity=tiny.identity())
        assert with_face.shape == expected.shape and (with_face - expected).abs().max() > 1e-3
        pipe.set_facesnap_scale(identity_scale=0, landmark_scale=0)
        assert torch.equal(images(identity=tiny.identity()), expected)
        pipe.unload_facesnap_adapter()
        assert torch.equal(images(), expected)
        assert torch.equal(stock("a cat", generator=seeded(), **call, **size).images, expected)

    def test_from_pipe_shares_everything_and_keeps_dtypes(self, cls, stock_cls, arguments, sd, xl):
        base = facesnap(xl if "XL" in cls.__name__ else sd)
        base.set_facesnap_scale(identity_scale=0.3)
        base.vae.to(torch.float16)
        try:
            pipe = cls.from_pipe(base)
            assert pipe.vae.dtype == torch.float16 and pipe.unet.dtype == torch.float32
        finally:
            base.vae.to(torch.float32)
        for name, component in base.components.items():
            assert pipe.components[name] is component, name
        assert pipe.facesnap_config == base.facesnap_config and pipe.facesnap_scale["identity_scale"] == 0.3

    def test_from_pretrained_and_back(self, cls, stock_cls, arguments, sd, xl, tmp_path):
        base = xl if "XL" in cls.__name__ else sd
        base.save_pretrained(tmp_path / "base")
        pipe = cls.from_pretrained(tmp_path / "base")
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe)
        call = {"num_inference_steps": 2, "output_type": "pt", **arguments}
        images = pipe("a cat", identity=tiny.identity(), generator=seeded(), **call).images
        pipe.save_pretrained(tmp_path / "whole")
        again = cls.from_pretrained(tmp_path / "whole")
        again.set_progress_bar_config(disable=True)
        assert torch.equal(again("a cat", identity=tiny.identity(), generator=seeded(), **call).images, images)


class TestNumbers:
    """FaceSnap's parts give what the stock ControlNet pipelines give with the same tensors assembled by hand."""

    def by_hand(self, pipe, stock_cls, identity, **kwargs):
        """The stock pipeline: tokens appended to the prompt embeddings by us, FFRNet as its ControlNet."""
        xl = hasattr(pipe, "text_encoder_2")
        embeds = pipe.encode_prompt("a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
        with torch.no_grad():
            face, states = identity.face_embeds[None], identity.image_hidden_states[None]
            tokens = pipe.mixer(face, states)
            unconditional = pipe.mixer(face, states, torch.tensor([True]))
        controlnet = ControlNetModel.from_config(pipe.ffrnet.config)
        controlnet.load_state_dict(pipe.ffrnet.state_dict())
        points = pipe.predict_landmarks(identity, height=64, width=64)
        components = {
            name: part
            for name, part in pipe.components.items()
            if name in stock_cls._get_signature_keys(stock_cls)[0] and name != "controlnet"
        }
        options = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
        stock = stock_cls(**components, controlnet=controlnet, **options)
        stock.set_progress_bar_config(disable=True)
        num_tokens = tokens.shape[1]
        # in InstantID's configuration the ControlNet's context is the identity and its pooled text is whatever FFRNet takes
        forward = controlnet.forward

        def on_identity(*args, encoder_hidden_states, added_cond_kwargs=None, **kwargs):
            if added_cond_kwargs is not None:
                pooled = torch.zeros_like(added_cond_kwargs["text_embeds"])
                added_cond_kwargs = {**added_cond_kwargs, "text_embeds": pooled}
            context = encoder_hidden_states[:, -num_tokens:]
            return forward(*args, encoder_hidden_states=context, added_cond_kwargs=added_cond_kwargs, **kwargs)

        controlnet.forward = on_identity
        pooled = {"pooled_prompt_embeds": embeds[2], "negative_pooled_prompt_embeds": embeds[3]} if xl else {}
        context = pipe.identity_attention.context(pipe.unet, num_tokens, pipe.facesnap_scale["identity_scale"])
        return stock(
            prompt_embeds=torch.cat([embeds[0], tokens], 1),
            negative_prompt_embeds=torch.cat([embeds[1], unconditional], 1),
            **pooled,
            image=draw_landmarks(points, 64, 64),
            controlnet_conditioning_scale=pipe.facesnap_scale["landmark_scale"],
            cross_attention_kwargs=context.as_kwargs(),
            generator=seeded(),
            **STEPS,
            **kwargs,
        ).images

    def test_sd(self, pipe):
        pipe.set_facesnap_scale(identity_scale=0.7, landmark_scale=0.6)
        expected = self.by_hand(pipe, StableDiffusionControlNetPipeline, tiny.identity())
        torch.testing.assert_close(generate(pipe, identity=tiny.identity()), expected, atol=1e-5, rtol=0)

    def test_xl_in_the_configuration_of_instantid(self, pipe_xl):
        pipe_xl.set_facesnap_scale(identity_scale=0.8, landmark_scale=0.8)
        expected = self.by_hand(pipe_xl, StableDiffusionXLControlNetPipeline, tiny.identity())
        torch.testing.assert_close(generate(pipe_xl, identity=tiny.identity()), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_ffrnet_does_not_see_the_prompt(self, name, request):
        pipe = request.getfixturevalue(name)
        residuals = []
        handle = pipe.ffrnet.register_forward_hook(lambda net, inputs, outputs: residuals.append(outputs[1]))
        for prompt, face in [("a cat", 3), ("two dogs in the rain", 3), ("a cat", 4)]:
            generate(pipe, prompt, identity=tiny.identity(face), num_inference_steps=1)
        handle.remove()
        assert torch.equal(residuals[0], residuals[1]) and not torch.equal(residuals[0], residuals[2])

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_ffrnet_skips_its_work(self, name, request):
        pipe, calls = request.getfixturevalue(name), []
        handle = pipe.ffrnet.register_forward_hook(lambda *args: calls.append(1))
        generate(pipe, identity=tiny.identity(), num_inference_steps=4)
        assert len(calls) == 4
        calls.clear()
        generate(
            pipe,
            identity=tiny.identity(),
            num_inference_steps=4,
            control_guidance_start=0.25,
            control_guidance_end=0.75,
        )
        assert len(calls) == 2
        calls.clear()
        pipe.set_facesnap_scale(landmark_scale=0)
        generate(pipe, identity=tiny.identity(), num_inference_steps=4)
        handle.remove()
        assert not calls


class TestSteering:
    def test_default_is_the_reference_itself(self, pipe):
        identity = tiny.identity()
        points = pipe.predict_landmarks(identity, height=100, width=120)
        # the predictor's fit of the mean face, which it knows well
        error = (points[0, :68] - identity.landmarks).norm(dim=-1).mean()
        assert error < 0.1 * (identity.landmarks[36] - identity.landmarks[45]).norm()

    def test_pose_and_expression_by_numbers(self, pipe):
        def points(**kwargs):
            return pipe.predict_landmarks(tiny.identity(), height=64, width=64, **kwargs)[0]

        def nose_offset(p):
            return (p[30, 0] - (p[36, 0] + p[45, 0]) / 2) / (p[45, 0] - p[36, 0])

        assert nose_offset(points(pose=HeadPose(yaw=30))) > 0.1 > -0.1 > nose_offset(points(pose=HeadPose(yaw=-30)))
        mouth = points(expression={"jawOpen": 1.0})[[62, 66], 1] - points(expression="neutral")[[62, 66], 1]
        assert mouth[1] - mouth[0] > 1

    def test_face_box(self, pipe):
        points = pipe.predict_landmarks(
            tiny.identity(),
            height=100,
            width=200,
            pose=HeadPose(),
            expression="neutral",
            face_box=(0.5, 0.2, 0.9, 0.6),
        )[0]
        low, high = points.amin(0), points.amax(0)
        torch.testing.assert_close((low + high) / 2, torch.tensor([140.0, 40.0]), atol=0.5, rtol=0)
        assert (high - low)[1].item() == pytest.approx(40, abs=0.5)

    def test_without_landmarks_a_portrait(self, pipe):
        points = pipe.predict_landmarks(tiny.identity(landmarks=False), height=64, width=64)
        assert points.min() > 0 and points.max() < 64

    def test_a_turntable_is_one_batch(self, pipe):
        poses = [HeadPose(yaw=yaw) for yaw in (-30, 0, 30)]
        images = generate(pipe, identity=tiny.identity(), pose=poses)
        assert images.shape[0] == 3 and not torch.equal(images[0], images[2])

    def test_own_landmarks_are_used_as_they_are(self, pipe):
        points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        expected = generate(pipe, identity=tiny.identity(), pose=HeadPose(yaw=20))
        assert torch.equal(generate(pipe, identity=tiny.identity(), landmarks=points), expected)


class TestBatches:
    def test_two_people_in_a_batch_are_two_single_calls(self, pipe):
        people = [tiny.identity(3), tiny.identity(4)]
        generators = [seeded(0), seeded(1)]
        both = pipe(["a cat", "a dog"], identity=people, generator=generators, **STEPS).images
        for i, prompt in enumerate(["a cat", "a dog"]):
            alone = pipe(prompt, identity=people[i], generator=seeded(i), **STEPS).images
            torch.testing.assert_close(both[i], alone[0], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
    def test_images_per_prompt(self, pipe, guidance_scale):
        people = [tiny.identity(3), tiny.identity(4)]
        generators = [seeded(i) for i in range(4)]
        images = pipe(
            "a cat",
            identity=people,
            num_images_per_prompt=2,
            generator=generators,
            guidance_scale=guidance_scale,
            **STEPS,
        ).images
        assert len(images) == 4
        alone = pipe("a cat", identity=people[1], generator=seeded(2), guidance_scale=guidance_scale, **STEPS).images
        torch.testing.assert_close(images[2], alone[0], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_one_prompt_and_negative_prompt_for_a_batch_of_faces(self, name, request):
        pipe = request.getfixturevalue(name)
        people, generators = [tiny.identity(3), tiny.identity(4)], [seeded(0), seeded(1)]
        prompts = {"negative_prompt": "blurred"} | ({"negative_prompt_2": "grey"} if name == "pipe_xl" else {})
        both = pipe("a cat", identity=people, generator=generators, **prompts, **STEPS).images
        alone = pipe("a cat", identity=people[1], generator=seeded(1), **prompts, **STEPS).images
        torch.testing.assert_close(both[1], alone[0], atol=1e-4, rtol=0)

    def test_prompt_embeds(self, pipe):
        embeds, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
        images = generate(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, identity=tiny.identity())
        assert torch.equal(images, generate(pipe, identity=tiny.identity()))


class TestWorksTogetherWith:
    def test_further_controlnets_do_not_see_the_identity(self, sd, pipe):
        torch.manual_seed(5)
        channels = (16, 32)
        further = ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=channels)
        for parameter in further.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        contexts = []
        further.register_forward_pre_hook(
            lambda module, args, kwargs: contexts.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        stock = StableDiffusionControlNetPipeline.from_pipe(sd, controlnet=further)
        stock.set_progress_bar_config(disable=True)
        expected = generate(stock, image=picture(), controlnet_conditioning_scale=0.5)
        pipe.controlnet = further
        contexts.clear()
        arguments = {"image": picture(), "controlnet_conditioning_scale": 0.5}
        assert torch.equal(generate(pipe, **arguments), expected)
        with_face = generate(pipe, identity=tiny.identity(), **arguments)
        assert all(context.shape[1] == 77 for context in contexts) and not torch.equal(with_face, expected)
        assert not torch.equal(with_face, generate(pipe, identity=tiny.identity(), image=picture(1)))
        pipe.set_facesnap_scale(0, 0)
        assert torch.equal(generate(pipe, identity=tiny.identity(), **arguments), expected)
        assert pipe.controlnet is further

        pipe.set_facesnap_scale(1, 1)
        pipe.controlnet = MultiControlNetModel([further, further])
        halves = {"image": [picture()] * 2, "controlnet_conditioning_scale": [0.25, 0.25]}
        torch.testing.assert_close(generate(pipe, identity=tiny.identity(), **halves), with_face, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("parts", [["mixer", "ffrnet"], ["mixer", "identity_attention"]])
    def test_parts_left_out(self, sd, parts):
        pipe = FaceSnapPipeline.from_pipe(sd)
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe, parts=parts)
        images = generate(pipe, identity=tiny.identity())
        assert not torch.equal(images, generate(pipe))
        assert not torch.equal(images, generate(pipe, identity=tiny.identity(4)))

    def test_a_stock_ip_adapter_before_or_after(self, tmp_path):
        stock = tiny.sd_pipeline()
        style = [torch.randn(2, 1, 16)]
        weights = ip_adapter_weights(stock.unet)

        def load_ip_adapter(pipe):
            pipe.register_modules(image_encoder=tiny.image_encoder())
            pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
            pipe.set_ip_adapter_scale(0.6)

        def load_facesnap(pipe):
            pipe.load_facesnap_adapter(tmp_path)

        load_ip_adapter(stock)
        expected = generate(stock, ip_adapter_image_embeds=style)
        stock.unload_ip_adapter()
        facesnap(tiny.sd_pipeline()).save_facesnap_adapter(tmp_path)

        images = []
        for order in ("before", "after"):
            pipe = FaceSnapPipeline.from_pipe(stock)
            pipe.set_progress_bar_config(disable=True)
            for load in (load_ip_adapter, load_facesnap)[:: 1 if order == "before" else -1]:
                load(pipe)
            assert torch.equal(generate(pipe, ip_adapter_image_embeds=style), expected)
            images.append(generate(pipe, ip_adapter_image_embeds=style, identity=tiny.identity()))
            other = generate(pipe, ip_adapter_image_embeds=[-style[0]], identity=tiny.identity())
            assert not torch.equal(images[-1], other) and not torch.equal(images[-1], expected)
            pipe.set_facesnap_scale(0, 0)
            assert torch.equal(generate(pipe, ip_adapter_image_embeds=style, identity=tiny.identity()), expected)
            pipe.unload_ip_adapter()
        assert torch.equal(*images)

    def test_an_inpainting_model_takes_an_adapter_of_its_base_model(self, sd, tmp_path):
        facesnap(sd).save_facesnap_adapter(tmp_path)
        torch.manual_seed(0)
        unet = tiny.sd_unet(in_channels=9).eval()
        pipe = FaceSnapInpaintPipeline.from_pipe(sd, unet=unet)
        stock = StableDiffusionInpaintPipeline.from_pipe(sd, unet=unet)
        for each in (pipe, stock):
            each.set_progress_bar_config(disable=True)
        pipe.load_facesnap_adapter(tmp_path)
        arguments = {"image": picture(), "mask_image": mask()}
        expected = generate(stock, **arguments)
        assert (generate(pipe, identity=tiny.identity(), **arguments) - expected).abs().max() > 1e-3
        assert torch.equal(generate(pipe, **arguments), expected)

    def test_lora(self, tmp_path):
        from peft import LoraConfig, get_peft_model_state_dict

        trained = tiny.sd_pipeline()
        torch.manual_seed(0)
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        trained.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=layers))
        trained.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(trained.unet))

        pipe = facesnap(tiny.sd_pipeline())
        before = generate(pipe, identity=tiny.identity())
        pipe.load_lora_weights(tmp_path, adapter_name="style")
        assert torch.equal(generate(pipe), generate(trained))
        with_lora = generate(pipe, identity=tiny.identity())
        assert (with_lora - before).abs().max() > 1e-3
        assert not any("lora" in name for name in pipe.identity_attention.state_dict())
        pipe.fuse_lora()
        torch.testing.assert_close(generate(pipe, identity=tiny.identity()), with_lora, atol=1e-4, rtol=0)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        torch.testing.assert_close(generate(pipe, identity=tiny.identity()), before, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("scheduler", [LCMScheduler, EulerAncestralDiscreteScheduler])
    def test_schedulers_of_distilled_models(self, sd, pipe, scheduler):
        """LCM's, and the one of Turbo models with its trailing timesteps: without guidance."""
        schedule = scheduler.from_config(sd.scheduler.config, timestep_spacing="trailing")
        stock = type(sd)(**{**sd.components, "scheduler": schedule}, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        pipe.scheduler = schedule
        plain = generate(stock, guidance_scale=0.0)
        image = generate(pipe, identity=tiny.identity(), guidance_scale=0.0)
        assert image.isfinite().all() and (image - plain).abs().max() > 1e-3
        pipe.set_facesnap_scale(0, 0)
        assert torch.equal(generate(pipe, identity=tiny.identity(), guidance_scale=0.0), plain)

    def test_callback_that_stops_guidance_half_way(self, pipe):
        seen = []

        def stop_guidance(pipeline, step, timestep, tensors):
            seen.append(tensors["prompt_embeds"].shape)
            if step == 0:
                pipeline._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
                tensors["image"] = tensors["image"].chunk(2)[-1]
            return tensors

        generate(
            pipe,
            identity=tiny.identity(),
            callback_on_step_end=stop_guidance,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "image"],
        )
        assert seen == [(2, 77 + 5, 32), (1, 77 + 5, 32)]

    def test_clip_skip(self, pipe):
        """The text encoder's last hidden states but one, through its final norm."""
        encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
        ids, empty = (tokenizer(text, padding="max_length", return_tensors="pt").input_ids for text in ("a cat", ""))
        with torch.no_grad():
            embeds = encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
            negative = encoder(empty).last_hidden_state
        for face in ({}, {"identity": tiny.identity()}):
            expected = generate(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, **face)
            skipped = generate(pipe, clip_skip=1, **face)
            assert torch.equal(skipped, expected) and not torch.equal(skipped, generate(pipe, **face))
        assert not hasattr(encoder, "text_model")

    def test_clip_skip_xl(self, pipe_xl):
        images = generate(pipe_xl, identity=tiny.identity())
        assert not torch.equal(generate(pipe_xl, identity=tiny.identity(), clip_skip=1), images)

    def test_outputs(self, pipe):
        assert isinstance(generate(pipe, identity=tiny.identity(), output_type="pil")[0], PIL.Image.Image)
        assert generate(pipe, identity=tiny.identity(), output_type="np").shape == (1, 64, 64, 3)
        assert generate(pipe, identity=tiny.identity(), output_type="latent").shape == (1, 4, 32, 32)
        images, nsfw = pipe("a cat", identity=tiny.identity(), return_dict=False, **STEPS)
        assert images.shape == (1, 3, 64, 64) and nsfw is None

    @pytest.mark.parametrize("setting", ["slicing", "backend", "fused"])
    def test_memory_and_speed_settings(self, setting):
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        if setting == "slicing":
            pipe.enable_attention_slicing(1)
        elif setting == "backend":
            pipe.unet.set_attention_backend("native")
        else:
            pipe.unet.fuse_qkv_projections()
        torch.testing.assert_close(generate(pipe, identity=tiny.identity()), expected, atol=1e-4, rtol=0)
        if setting == "slicing":
            pipe.disable_attention_slicing()
            assert torch.equal(generate(pipe, identity=tiny.identity()), expected)

    def test_vae_tiling(self):
        pipe = facesnap(tiny.sd_pipeline())
        latents = generate(pipe, identity=tiny.identity(), output_type="latent")
        pipe.vae.enable_tiling()
        with torch.no_grad():
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        expected = (decoded / 2 + 0.5).clamp(0, 1)
        assert torch.equal(generate(pipe, identity=tiny.identity()), expected)
        pipe.vae.disable_tiling()
        assert not torch.equal(generate(pipe, identity=tiny.identity()), expected)

    def test_model_offload(self):
        """On the CPU nothing moves, but every hook runs: where one is missing, or left behind, the call fails."""
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert torch.equal(generate(pipe, identity=tiny.identity()), expected)
        assert pipe.controlnet is None and hasattr(pipe.ffrnet, "_hf_hook")

    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_group_offload(self, kind, tmp_path, monkeypatch):
        """Weights lie on disk until their hook brings them; what stands in for them meanwhile is not finite."""
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        monkeypatch.setattr(torch, "empty_like", nothing_like)
        for name, component in pipe.components.items():
            options = {"onload_device": torch.device("cpu"), "offload_type": kind, "num_blocks_per_group": 1}
            if hasattr(component, "enable_group_offload"):
                component.enable_group_offload(**options, offload_to_disk_path=str(tmp_path / name))
            elif isinstance(component, torch.nn.Module):
                apply_group_offloading(component, **options, offload_to_disk_path=str(tmp_path / name))
        assert pipe.unet.conv_in.weight.isnan().all() and pipe.mixer.queries.isnan().all()
        for _ in range(2):
            assert torch.equal(generate(pipe, identity=tiny.identity()), expected)

    def test_group_offload_of_the_pipeline(self):
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        for _ in range(2):
            assert torch.equal(generate(pipe, identity=tiny.identity()), expected)
        assert pipe.controlnet is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        pipe.to(dtype)
        images = generate(pipe, identity=tiny.identity())
        assert {pipe.mixer.dtype, pipe.ffrnet.dtype, pipe.identity_attention.dtype, pipe.dtype} == {dtype}
        assert (images.float() - expected).abs().mean() < 0.02
        half = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        assert torch.equal(half, points), "landmarks do not lose precision"

    def test_from_pretrained_in_half_precision(self, tmp_path):
        facesnap(tiny.sd_pipeline()).save_pretrained(tmp_path)
        pipe = FaceSnapPipeline.from_pretrained(tmp_path, dtype=torch.float16)
        dtypes = {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        assert dtypes.pop("landmark_predictor") == torch.float32 and set(dtypes.values()) == {torch.float16}

    def test_compiled_unet(self):
        """One graph for all calls: no break in it, and no second compilation when the processors come back."""
        pipe = facesnap(tiny.sd_pipeline())
        expected = generate(pipe, identity=tiny.identity())
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)
        for seed in (3, 4, 3):
            images = generate(pipe, identity=tiny.identity(seed))
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
        assert len(graphs) == 1


def nothing_like(tensor, **options):
    """As `torch.empty_like`, whose values nobody should use."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0, **options)


def ip_adapter_weights(unet):
    """A stock IP-Adapter with random weights, in the layout of the public files."""
    generator = torch.Generator().manual_seed(0)
    attention = {}
    for i, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        layer = unet.get_submodule(name.removesuffix(".processor"))
        shape = layer.to_k.weight.shape
        attention[f"{2 * i + 1}.to_k_ip.weight"] = 0.2 * torch.randn(shape, generator=generator)
        attention[f"{2 * i + 1}.to_v_ip.weight"] = 0.2 * torch.randn(shape, generator=generator)
    width = unet.config.cross_attention_dim
    projection = {
        "proj.weight": torch.randn(4 * width, 16, generator=generator),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": attention}
