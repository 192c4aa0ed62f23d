"""An adapter that is fresh, and one that is scaled."""

import tiny
import torch
from transformers import CLIPImageProcessor

from facesnap_diffusers import FaceSnapPipeline


def image_of(pipe):
    return tiny.generate(pipe, identity=tiny.identity())


class TestScale:
    def test_values_stay_until_changed(self, trained):
        pipe = FaceSnapPipeline.from_pipe(trained)
        pipe.set_facesnap_scale(identity_scale=0.5)
        pipe.set_facesnap_scale(landmark_scale=0.25)
        assert pipe.facesnap_scale == {"identity_scale": 0.5, "landmark_scale": 0.25}
        assert trained.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 1.0}

    def test_a_dictionary_is_copied(self, trained):
        pipe = FaceSnapPipeline.from_pipe(trained)
        mine = {"mid_block": 0.5}
        pipe.set_facesnap_scale(identity_scale=mine)
        mine["mid_block"] = 0.1
        pipe.facesnap_scale["identity_scale"]["mid_block"] = 0.2
        FaceSnapPipeline.from_pipe(pipe).facesnap_scale["identity_scale"]["mid_block"] = 0.3
        assert pipe.facesnap_scale["identity_scale"] == {"mid_block": 0.5}

    def test_by_layer(self, trained):
        pipe = FaceSnapPipeline.from_pipe(trained)
        pipe.set_progress_bar_config(disable=True)
        everywhere = image_of(pipe)
        pipe.set_facesnap_scale(identity_scale={"down_blocks": 1.0, "mid_block": 1.0, "up_blocks": 1.0})
        assert torch.equal(image_of(pipe), everywhere)
        pipe.set_facesnap_scale(identity_scale={"mid_block": 1.0})
        assert not torch.equal(image_of(pipe), everywhere)


def test_init_leaves_a_pipeline_that_generates_like_the_base():
    """Before training FFRNet adds nothing, so that at identity scale 0 the picture is the base model's."""
    pipe = tiny.new_pipeline()
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None), mixer={"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8}
    )
    pipe.set_facesnap_scale(identity_scale=0.0)
    plain = pipe("a cat", generator=tiny.seeded(), **tiny.CALL).images
    face = pipe(
        "a cat",
        identity=tiny.identity(image_features=False),
        generator=tiny.seeded(),
        **tiny.CALL,
    ).images
    torch.testing.assert_close(face, plain, atol=1e-5, rtol=0)


def test_the_unet_of_the_caller_stays_as_it_is_and_parts_become_the_pipelines():
    pipe = tiny.new_pipeline()
    pipe.unet.train().requires_grad_(True)
    encoder = tiny.image_encoder().train().requires_grad_(True)
    pipe.init_facesnap_adapter(
        tiny.adapter_config(),
        mixer={"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8},
        image_encoder=encoder,
        image_processor=CLIPImageProcessor(),
    )
    assert pipe.unet.training and all(parameter.requires_grad for parameter in pipe.unet.parameters())
    for part in (pipe.face_image_encoder, pipe.mixer, pipe.ffrnet, pipe.identity_attention):
        assert not part.training and not any(parameter.requires_grad for parameter in part.parameters())
    assert pipe.face_image_encoder is encoder
