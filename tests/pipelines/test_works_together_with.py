"""A FaceSnap pipeline with what else diffusers offers: ControlNets, IP-Adapters, LoRA, schedulers, memory and speed settings."""

import PIL.Image
import pytest
import third_party
import tiny
import torch
from diffusers import (
    ControlNetModel,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
)
from diffusers.hooks import apply_group_offloading
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

from facesnap_diffusers import (
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    HeadPose,
)


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
        expected = tiny.generate(stock, image=tiny.picture(), controlnet_conditioning_scale=0.5)
        pipe.controlnet = further
        contexts.clear()
        arguments = {"image": tiny.picture(), "controlnet_conditioning_scale": 0.5}
        assert torch.equal(tiny.generate(pipe, **arguments), expected)
        with_face = tiny.generate(pipe, identity=tiny.identity(), **arguments)
        assert all(context.shape[1] == 77 for context in contexts) and not torch.equal(with_face, expected)
        assert not torch.equal(with_face, tiny.generate(pipe, identity=tiny.identity(), image=tiny.picture(1)))
        pipe.set_facesnap_scale(0, 0)
        assert torch.equal(tiny.generate(pipe, identity=tiny.identity(), **arguments), expected)
        assert pipe.controlnet is further

        pipe.set_facesnap_scale(1, 1)
        pipe.controlnet = MultiControlNetModel([further, further])
        halves = {"image": [tiny.picture()] * 2, "controlnet_conditioning_scale": [0.25, 0.25]}
        torch.testing.assert_close(
            tiny.generate(pipe, identity=tiny.identity(), **halves), with_face, atol=1e-4, rtol=0
        )

    @pytest.mark.parametrize("parts", [["mixer", "ffrnet"], ["mixer", "identity_attention"]])
    def test_parts_left_out(self, sd, parts):
        pipe = FaceSnapPipeline.from_pipe(sd)
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe, parts=parts)
        images = tiny.generate(pipe, identity=tiny.identity())
        assert not torch.equal(images, tiny.generate(pipe))
        assert not torch.equal(images, tiny.generate(pipe, identity=tiny.identity(4)))

    def test_a_stock_ip_adapter_before_or_after(self, tmp_path):
        stock = tiny.sd_pipeline()
        style = [torch.randn(2, 1, 16)]
        weights = third_party.ip_adapter(stock.unet)

        def load_ip_adapter(pipe):
            pipe.register_modules(image_encoder=tiny.image_encoder())
            pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
            pipe.set_ip_adapter_scale(0.6)

        def load_facesnap(pipe):
            pipe.load_facesnap_adapter(tmp_path)

        load_ip_adapter(stock)
        expected = tiny.generate(stock, ip_adapter_image_embeds=style)
        stock.unload_ip_adapter()
        tiny.with_adapter(tiny.sd_pipeline()).save_facesnap_adapter(tmp_path)

        images = []
        for order in ("before", "after"):
            pipe = FaceSnapPipeline.from_pipe(stock)
            pipe.set_progress_bar_config(disable=True)
            for load in (load_ip_adapter, load_facesnap)[:: 1 if order == "before" else -1]:
                load(pipe)
            assert torch.equal(tiny.generate(pipe, ip_adapter_image_embeds=style), expected)
            images.append(tiny.generate(pipe, ip_adapter_image_embeds=style, identity=tiny.identity()))
            other = tiny.generate(pipe, ip_adapter_image_embeds=[-style[0]], identity=tiny.identity())
            assert not torch.equal(images[-1], other) and not torch.equal(images[-1], expected)
            pipe.set_facesnap_scale(0, 0)
            assert torch.equal(tiny.generate(pipe, ip_adapter_image_embeds=style, identity=tiny.identity()), expected)
            pipe.unload_ip_adapter()
        assert torch.equal(*images)

    def test_an_inpainting_model_takes_an_adapter_of_its_base_model(self, sd, tmp_path):
        tiny.with_adapter(sd).save_facesnap_adapter(tmp_path)
        torch.manual_seed(0)
        unet = tiny.sd_unet(in_channels=9).eval()
        pipe = FaceSnapInpaintPipeline.from_pipe(sd, unet=unet)
        stock = StableDiffusionInpaintPipeline.from_pipe(sd, unet=unet)
        for each in (pipe, stock):
            each.set_progress_bar_config(disable=True)
        pipe.load_facesnap_adapter(tmp_path)
        arguments = {"image": tiny.picture(), "mask_image": tiny.mask()}
        expected = tiny.generate(stock, **arguments)
        assert (tiny.generate(pipe, identity=tiny.identity(), **arguments) - expected).abs().max() > 1e-3
        assert torch.equal(tiny.generate(pipe, **arguments), expected)

    @pytest.mark.slow
    def test_lora(self, tmp_path):
        from peft import LoraConfig, get_peft_model_state_dict

        trained = tiny.sd_pipeline()
        torch.manual_seed(0)
        layers = ["to_k", "to_q", "to_v", "to_out.0"]
        trained.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=layers))
        trained.save_lora_weights(tmp_path, unet_lora_layers=get_peft_model_state_dict(trained.unet))

        pipe = tiny.with_adapter(tiny.sd_pipeline())
        before = tiny.generate(pipe, identity=tiny.identity())
        pipe.load_lora_weights(tmp_path, adapter_name="style")
        assert torch.equal(tiny.generate(pipe), tiny.generate(trained))
        with_lora = tiny.generate(pipe, identity=tiny.identity())
        assert (with_lora - before).abs().max() > 1e-3
        assert not any("lora" in name for name in pipe.identity_attention.state_dict())
        pipe.fuse_lora()
        torch.testing.assert_close(tiny.generate(pipe, identity=tiny.identity()), with_lora, atol=1e-4, rtol=0)
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
        torch.testing.assert_close(tiny.generate(pipe, identity=tiny.identity()), before, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("scheduler", [LCMScheduler, EulerAncestralDiscreteScheduler])
    def test_schedulers_of_distilled_models(self, sd, pipe, scheduler):
        """LCM's, and the one of Turbo models with its trailing timesteps: without guidance."""
        schedule = scheduler.from_config(sd.scheduler.config, timestep_spacing="trailing")
        stock = type(sd)(**{**sd.components, "scheduler": schedule}, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        pipe.scheduler = schedule
        plain = tiny.generate(stock, guidance_scale=0.0)
        image = tiny.generate(pipe, identity=tiny.identity(), guidance_scale=0.0)
        assert image.isfinite().all() and (image - plain).abs().max() > 1e-3
        pipe.set_facesnap_scale(0, 0)
        assert torch.equal(tiny.generate(pipe, identity=tiny.identity(), guidance_scale=0.0), plain)

    def test_callback_that_stops_guidance_half_way(self, pipe):
        seen = []

        def stop_guidance(pipeline, step, timestep, tensors):
            seen.append(tensors["prompt_embeds"].shape)
            if step == 0:
                pipeline._guidance_scale = 0.0
                tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
                tensors["image"] = tensors["image"].chunk(2)[-1]
            return tensors

        tiny.generate(
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
            expected = tiny.generate(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, **face)
            skipped = tiny.generate(pipe, clip_skip=1, **face)
            assert torch.equal(skipped, expected) and not torch.equal(skipped, tiny.generate(pipe, **face))
        assert not hasattr(encoder, "text_model")

    def test_clip_skip_xl(self, pipe_xl):
        images = tiny.generate(pipe_xl, identity=tiny.identity())
        assert not torch.equal(tiny.generate(pipe_xl, identity=tiny.identity(), clip_skip=1), images)

    def test_outputs(self, pipe):
        assert isinstance(tiny.generate(pipe, identity=tiny.identity(), output_type="pil")[0], PIL.Image.Image)
        assert tiny.generate(pipe, identity=tiny.identity(), output_type="np").shape == (1, 64, 64, 3)
        assert tiny.generate(pipe, identity=tiny.identity(), output_type="latent").shape == (1, 4, 32, 32)
        images, nsfw = pipe("a cat", identity=tiny.identity(), return_dict=False, **tiny.CALL)
        assert images.shape == (1, 3, 64, 64) and nsfw is None

    @pytest.mark.parametrize("setting", ["slicing", "backend", "fused"])
    def test_memory_and_speed_settings(self, setting):
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        if setting == "slicing":
            pipe.enable_attention_slicing(1)
        elif setting == "backend":
            pipe.unet.set_attention_backend("native")
        else:
            pipe.unet.fuse_qkv_projections()
        torch.testing.assert_close(tiny.generate(pipe, identity=tiny.identity()), expected, atol=1e-4, rtol=0)
        if setting == "slicing":
            pipe.disable_attention_slicing()
            assert torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)

    def test_vae_tiling(self):
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        latents = tiny.generate(pipe, identity=tiny.identity(), output_type="latent")
        pipe.vae.enable_tiling()
        with torch.no_grad():
            decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        expected = (decoded / 2 + 0.5).clamp(0, 1)
        assert torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)
        pipe.vae.disable_tiling()
        assert not torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)

    def test_model_offload(self):
        """On the CPU nothing moves, but every hook runs: where one is missing, or left behind, the call fails."""
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        pipe.enable_model_cpu_offload(device="cpu")
        for _ in range(2):
            assert torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)
        assert pipe.controlnet is None and hasattr(pipe.ffrnet, "_hf_hook")

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
    def test_group_offload(self, kind, tmp_path, monkeypatch):
        """Weights lie on disk until their hook brings them; what stands in for them meanwhile is not finite."""
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        monkeypatch.setattr(torch, "empty_like", nothing_like)
        for name, component in pipe.components.items():
            options = {"onload_device": torch.device("cpu"), "offload_type": kind, "num_blocks_per_group": 1}
            if hasattr(component, "enable_group_offload"):
                component.enable_group_offload(**options, offload_to_disk_path=str(tmp_path / name))
            elif isinstance(component, torch.nn.Module):
                apply_group_offloading(component, **options, offload_to_disk_path=str(tmp_path / name))
        assert pipe.unet.conv_in.weight.isnan().all() and pipe.mixer.queries.isnan().all()
        for _ in range(2):
            assert torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)

    def test_group_offload_of_the_pipeline(self):
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        for _ in range(2):
            assert torch.equal(tiny.generate(pipe, identity=tiny.identity()), expected)
        assert pipe.controlnet is None

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype):
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        pipe.to(dtype)
        images = tiny.generate(pipe, identity=tiny.identity())
        assert {pipe.mixer.dtype, pipe.ffrnet.dtype, pipe.identity_attention.dtype, pipe.dtype} == {dtype}
        assert (images.float() - expected).abs().mean() < 0.02
        half = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        assert torch.equal(half, points), "landmarks do not lose precision"

    def test_from_pretrained_in_half_precision(self, tmp_path):
        tiny.with_adapter(tiny.sd_pipeline()).save_pretrained(tmp_path)
        pipe = FaceSnapPipeline.from_pretrained(tmp_path, dtype=torch.float16)
        dtypes = {name: part.dtype for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        assert dtypes.pop("landmark_predictor") == torch.float32 and set(dtypes.values()) == {torch.float16}

    def test_compiled_unet(self):
        """One graph for all calls: no break in it, and no second compilation when the processors come back."""
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        expected = tiny.generate(pipe, identity=tiny.identity())
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)
        for seed in (3, 4, 3):
            images = tiny.generate(pipe, identity=tiny.identity(seed))
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
        assert len(graphs) == 1


def nothing_like(tensor, **options):
    """As `torch.empty_like`, whose values nobody should use."""
    return torch.full_like(tensor, torch.nan if tensor.is_floating_point() else 0, **options)
