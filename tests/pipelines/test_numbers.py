"""The images of a pipeline against the stock ControlNet pipelines with the same tensors assembled by hand."""

import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

from facesnap_diffusers import (
    draw_landmarks,
)
from facesnap_diffusers.pipelines.schedule import FaceSnapSchedule


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
            generator=tiny.seeded(),
            **tiny.CALL,
            **kwargs,
        ).images

    def test_sd(self, pipe):
        pipe.set_facesnap_scale(identity_scale=0.7, landmark_scale=0.6)
        expected = self.by_hand(pipe, StableDiffusionControlNetPipeline, tiny.identity())
        torch.testing.assert_close(tiny.generate(pipe, identity=tiny.identity()), expected, atol=1e-5, rtol=0)

    def test_xl_in_the_configuration_of_instantid(self, pipe_xl):
        pipe_xl.set_facesnap_scale(identity_scale=0.8, landmark_scale=0.8)
        expected = self.by_hand(pipe_xl, StableDiffusionXLControlNetPipeline, tiny.identity())
        torch.testing.assert_close(tiny.generate(pipe_xl, identity=tiny.identity()), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_ffrnet_does_not_see_the_prompt(self, name, request):
        pipe = request.getfixturevalue(name)
        residuals = []
        handle = pipe.ffrnet.register_forward_hook(lambda net, inputs, outputs: residuals.append(outputs[1]))
        for prompt, face in [("a cat", 3), ("two dogs in the rain", 3), ("a cat", 4)]:
            tiny.generate(pipe, prompt, identity=tiny.identity(face), num_inference_steps=1)
        handle.remove()
        assert torch.equal(residuals[0], residuals[1]) and not torch.equal(residuals[0], residuals[2])

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_ffrnet_skips_its_work(self, name, request):
        pipe, calls = request.getfixturevalue(name), []
        handle = pipe.ffrnet.register_forward_hook(lambda *args: calls.append(1))
        tiny.generate(pipe, identity=tiny.identity(), num_inference_steps=4)
        assert len(calls) == 4
        calls.clear()
        tiny.generate(
            pipe,
            identity=tiny.identity(),
            num_inference_steps=4,
            facesnap_schedule=FaceSnapSchedule(landmark_start=0.25, landmark_end=0.75),
        )
        assert len(calls) == 2
        calls.clear()
        pipe.set_facesnap_scale(landmark_scale=0)
        tiny.generate(pipe, identity=tiny.identity(), num_inference_steps=4)
        handle.remove()
        assert not calls
