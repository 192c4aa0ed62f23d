"""IP-Adapter FaceID checkpoints against stock diffusers' `load_ip_adapter`."""

import os

import foreign
import pytest
import tiny
import torch
from safetensors.torch import save_file

from facesnap_diffusers import AdapterError, FaceIdentity, FaceSnapPipeline, FaceSnapXLPipeline
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER


CALL = {"num_inference_steps": 3, "output_type": "pt", "height": 64, "width": 64, "guidance_scale": 5.0}

#: public file name: its content, whether it is FaceID-Plus version 2
VARIANTS = {
    "ip-adapter-faceid_sd15": (foreign.faceid, False),
    "ip-adapter-faceid-plus_sd15": (foreign.faceid_plus, False),
    "ip-adapter-faceid-plusv2_sd15": (foreign.faceid_plus, True),
    "ip-adapter-faceid-portrait_sd15": (lambda unet: foreign.faceid(unet, num_tokens=16, lora_rank=0), False),
    "ip-adapter-faceid_sdxl": (foreign.faceid, False),
    "ip-adapter-faceid-plusv2_sdxl": (foreign.faceid_plus, True),
}


def seeded():
    return torch.Generator().manual_seed(0)


def person(seed=5, image_features=True):
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.nn.functional.normalize(torch.randn(512, generator=generator), dim=0)
    states = torch.randn(5, foreign.CLIP_WIDTH, generator=generator)
    return FaceIdentity(
        face_embeds=embeds,
        face_encoder="insightface/w600k_r50",
        image_hidden_states=states if image_features else None,
        image_encoder=FACEID_PLUS_IMAGE_ENCODER if image_features else None,
    )


def base_for(name):
    return tiny.xl_pipeline() if "sdxl" in name else tiny.sd_pipeline()


def facesnap(base):
    pipe = (FaceSnapXLPipeline if hasattr(base, "text_encoder_2") else FaceSnapPipeline).from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write(folder, name, checkpoint, suffix):
    if suffix == ".bin":
        torch.save(checkpoint, folder / (name + suffix))
    else:
        save_file(foreign.flat(checkpoint), folder / (name + suffix))
    return name + suffix


def stock_image(base, folder, weight_name, identity, v2, scale=1.0):
    """What diffusers' documentation says to do with a FaceID checkpoint."""
    base.load_ip_adapter(str(folder), subfolder=None, weight_name=weight_name, image_encoder_folder=None)
    base.set_ip_adapter_scale(scale)
    projection = base.unet.encoder_hid_proj.image_projection_layers[0]
    if hasattr(projection, "clip_embeds"):
        encoder = tiny.image_encoder()
        with torch.no_grad():
            empty = encoder(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-2]
        projection.clip_embeds = torch.stack([empty, identity.image_hidden_states[None]])
        projection.shortcut = v2
    embeds = identity.face_embeds[None, None]
    embeds = torch.cat([torch.zeros_like(embeds), embeds])
    return base("a cat", ip_adapter_image_embeds=[embeds], generator=seeded(), **CALL).images


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_stock_diffusers(name, suffix, tmp_path):
    make, v2 = VARIANTS[name]
    base = base_for(name)
    plain = base("a cat", generator=seeded(), **CALL).images
    plus = make is foreign.faceid_plus
    weight_name = write(tmp_path, name, make(base.unet), suffix)
    identity = person(image_features=plus)

    pipe = facesnap(base)
    encoder = {"image_encoder": tiny.image_encoder()} if plus else {}
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, **encoder)
    pipe.set_facesnap_scale(identity=0.7)
    image = pipe("a cat", identity=identity, generator=seeded(), **CALL).images
    pipe.unload_facesnap_adapter()
    assert torch.equal(pipe("a cat", generator=seeded(), **CALL).images, plain)

    expected = stock_image(base, tmp_path, weight_name, identity, v2, scale=0.7)
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)


def test_lora_works_while_a_face_is_in_play_and_only_then():
    base = tiny.sd_pipeline()
    plain = base("a cat", generator=seeded(), **CALL).images
    checkpoint = foreign.faceid(base.unet)
    pipe = facesnap(base)
    identity = person(image_features=False)

    def image():
        return pipe("a cat", identity=identity, generator=seeded(), **CALL).images

    pipe.load_facesnap_adapter(checkpoint)
    with_lora = image()
    assert torch.equal(pipe("a cat", generator=seeded(), **CALL).images, plain)
    pipe.set_facesnap_scale(identity=0)
    assert torch.equal(image(), plain)
    without = {key: value for key, value in checkpoint["ip_adapter"].items() if "lora" not in key}
    pipe.load_facesnap_adapter({**checkpoint, "ip_adapter": without})
    assert (image() - with_lora).abs().max() > 1e-4
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_embeddings_of_any_length_are_the_same_person():
    base = tiny.sd_pipeline()
    pipe = facesnap(base)
    pipe.load_facesnap_adapter(foreign.faceid(base.unet))
    one = person(image_features=False)
    other = FaceIdentity(face_embeds=20 * one.face_embeds, face_encoder=one.face_encoder)
    images = [pipe("a cat", identity=who, generator=seeded(), **CALL).images for who in (one, other)]
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)


def test_survives_saving_as_an_adapter_of_our_own(tmp_path):
    base = tiny.sd_pipeline()
    pipe = facesnap(base)
    weight_name = write(tmp_path, "ip-adapter-faceid-plusv2_sd15", foreign.faceid_plus(base.unet), ".safetensors")
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, image_encoder=tiny.image_encoder())
    image = pipe("a cat", identity=person(), generator=seeded(), **CALL).images
    pipe.save_facesnap_adapter(tmp_path / "ours")
    again = facesnap(tiny.sd_pipeline())
    again.load_facesnap_adapter(tmp_path / "ours", image_encoder=tiny.image_encoder())
    assert torch.equal(again("a cat", identity=person(), generator=seeded(), **CALL).images, image)


def spoiled(key_part, change):
    """A FaceID checkpoint with one tensor changed, or left out."""

    def make(unet):
        checkpoint = foreign.faceid(unet)
        for tensors in checkpoint.values():
            for key in [key for key in tensors if key_part in key][:1]:
                tensor = change(tensors.pop(key))
                if tensor is not None:
                    tensors[key] = tensor
        return checkpoint

    return make


def mixed(unet):
    return {
        "image_proj": foreign.faceid(unet)["image_proj"],
        "ip_adapter": foreign.faceid(tiny.xl_unet())["ip_adapter"],
    }


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


WRONG = {
    "not an adapter": (lambda unet: dict(unet.state_dict()), "is no identity adapter"),
    "picture adapter": (
        lambda unet: {**foreign.faceid(unet), "image_proj": {"proj.weight": torch.ones(4, 4)}},
        "load_ip_adapter",
    ),
    "other family": (lambda unet: foreign.faceid(tiny.xl_unet()), "use a file made for"),
    "mixed": (mixed, "use a file made for|that this base model has not"),
    "tensor missing": (spoiled("to_v_ip", lambda tensor: None), "has no .*to_v_ip"),
    "half a LoRA": (spoiled("to_out_lora.up", lambda tensor: None), "has no .*to_out_lora"),
    "not finite": (spoiled("to_k_ip", lambda tensor: tensor * float("nan")), "not finite"),
    "projection incomplete": (spoiled("proj.2.bias", lambda tensor: None), "image_proj"),
    "no tensors": (lambda unet: {"image_proj": {"norm.weight": "x"}, "ip_adapter": {"a": 1}}, "other things than"),
    "a list": (lambda unet: [1, 2], "instead of names"),
    "code": (lambda unet: {"image_proj": Malicious(), "ip_adapter": {}}, "any code"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_gives_one_clear_line_and_changes_nothing(case, tmp_path, capfd):
    make, message = WRONG[case]
    base = tiny.sd_pipeline()
    pipe = facesnap(base)
    pipe.load_facesnap_adapter(foreign.faceid(base.unet))
    before = pipe("a cat", identity=person(image_features=False), generator=seeded(), **CALL).images
    torch.save(make(base.unet), tmp_path / "ip-adapter-faceid_sd15.bin")
    with pytest.raises(AdapterError, match=message) as caught:
        pipe.load_facesnap_adapter(tmp_path, weight_name="ip-adapter-faceid_sd15.bin")
    assert "\n" not in str(caught.value)
    after = pipe("a cat", identity=person(image_features=False), generator=seeded(), **CALL).images
    assert torch.equal(after, before)
    assert "must not run" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"garbage" * 100])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_torn_file_gives_one_clear_line(content, suffix, tmp_path):
    (tmp_path / f"file{suffix}").write_bytes(content)
    pipe = facesnap(tiny.sd_pipeline())
    with pytest.raises(AdapterError, match="download it again") as caught:
        pipe.load_facesnap_adapter(tmp_path / f"file{suffix}")
    assert "\n" not in str(caught.value) and pipe.facesnap_config is None


def test_a_missing_file_gives_one_clear_line(tmp_path):
    with pytest.raises(AdapterError, match="weight_name"):
        facesnap(tiny.sd_pipeline()).load_facesnap_adapter(tmp_path, weight_name="absent.bin")


def test_version_2_of_plus_can_be_said(tmp_path):
    base = tiny.sd_pipeline()
    pipe = facesnap(base)
    checkpoint = foreign.faceid_plus(base.unet)
    images = []
    for v2 in (False, True):
        pipe.load_facesnap_adapter(checkpoint, faceid_plus_v2=v2, image_encoder=tiny.image_encoder())
        images.append(pipe("a cat", identity=person(), generator=seeded(), **CALL).images)
    assert (images[0] - images[1]).abs().max() > 1e-4


def test_from_the_hub(hub, tmp_path):
    base = tiny.sd_pipeline()
    name = write(tmp_path, "ip-adapter-faceid_sd15", foreign.faceid(base.unet), ".bin")
    hub.add_commit("h94/IP-Adapter-FaceID", {name: (tmp_path / name).read_bytes()})
    images = []
    for source, options in [(tmp_path / name, {}), ("h94/IP-Adapter-FaceID", {"weight_name": name})]:
        pipe = facesnap(base)
        pipe.load_facesnap_adapter(source, cache_dir=str(tmp_path / "cache"), **options)
        images.append(pipe("a cat", identity=person(image_features=False), generator=seeded(), **CALL).images)
    assert torch.equal(*images)
    with pytest.raises(AdapterError, match="cannot be had from the Hub") as caught:
        pipe.load_facesnap_adapter(
            "h94/IP-Adapter-FaceID", weight_name="absent.bin", cache_dir=str(tmp_path / "cache")
        )
    assert "\n" not in str(caught.value)
