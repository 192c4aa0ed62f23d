"""Each of the six pipelines: plain Stable Diffusion without a face, shared components, saving and loading."""

import pytest
import tiny
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from facesnap_diffusers import (
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline,
    FaceSnapXLPipeline,
)


pytestmark = pytest.mark.slow


#: pipeline, its stock counterpart, further arguments
VARIANTS = [
    (FaceSnapPipeline, None, {}),
    (FaceSnapImg2ImgPipeline, StableDiffusionImg2ImgPipeline, {"image": tiny.picture(), "strength": 0.8}),
    (
        FaceSnapInpaintPipeline,
        StableDiffusionInpaintPipeline,
        {"image": tiny.picture(), "mask_image": tiny.mask(), "strength": 0.9},
    ),
    (FaceSnapXLPipeline, None, {}),
    (FaceSnapXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline, {"image": tiny.picture(), "strength": 0.8}),
    (
        FaceSnapXLInpaintPipeline,
        StableDiffusionXLInpaintPipeline,
        {"image": tiny.picture(), "mask_image": tiny.mask(), "strength": 0.9},
    ),
]


@pytest.mark.parametrize(("cls", "stock_cls", "arguments"), VARIANTS, ids=lambda value: getattr(value, "__name__", ""))
class TestEveryPipeline:
    def test_is_plain_stable_diffusion_without_a_face(self, cls, stock_cls, arguments, sd, xl):
        """Without an adapter, with one but no face, at both scales 0, and after unload: bit for bit."""
        base = xl if "XL" in cls.__name__ else sd
        stock = base if stock_cls is None else stock_cls.from_pipe(base)
        stock.set_progress_bar_config(disable=True)
        size = {} if stock_cls and "Img2Img" in stock_cls.__name__ else {"height": 64, "width": 64}
        call = {"num_inference_steps": 4, "output_type": "pt", "guidance_scale": 5.0, **arguments}
        expected = stock("a cat", generator=tiny.seeded(), **call, **size).images

        pipe = cls.from_pipe(base)
        pipe.set_progress_bar_config(disable=True)

        def images(**kwargs):
            return pipe("a cat", generator=tiny.seeded(), **call, **kwargs).images

        assert torch.equal(images(), expected)
        tiny.add_adapter(pipe)
        assert torch.equal(images(), expected)
        with_face = images(identity=tiny.identity())
        assert with_face.shape == expected.shape and (with_face - expected).abs().max() > 1e-3
        pipe.set_facesnap_scale(identity_scale=0, landmark_scale=0)
        assert torch.equal(images(identity=tiny.identity()), expected)
        pipe.unload_facesnap_adapter()
        assert torch.equal(images(), expected)
        assert torch.equal(stock("a cat", generator=tiny.seeded(), **call, **size).images, expected)

    def test_from_pipe_shares_everything_and_keeps_dtypes(self, cls, stock_cls, arguments, sd, xl):
        base = tiny.with_adapter(xl if "XL" in cls.__name__ else sd)
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

    @pytest.mark.slow
    def test_from_pretrained_and_back(self, cls, stock_cls, arguments, sd, xl, tmp_path):
        base = xl if "XL" in cls.__name__ else sd
        base.save_pretrained(tmp_path / "base")
        pipe = cls.from_pretrained(tmp_path / "base")
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe)
        call = {"num_inference_steps": 2, "output_type": "pt", **arguments}
        images = pipe("a cat", identity=tiny.identity(), generator=tiny.seeded(), **call).images
        pipe.save_pretrained(tmp_path / "whole")
        again = cls.from_pretrained(tmp_path / "whole")
        again.set_progress_bar_config(disable=True)
        assert torch.equal(again("a cat", identity=tiny.identity(), generator=tiny.seeded(), **call).images, images)
