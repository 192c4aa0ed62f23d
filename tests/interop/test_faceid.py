"""IP-Adapter checkpoints for faces against stock diffusers' `load_ip_adapter`."""

import os

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from insightface.utils.face_align import norm_crop
from safetensors.torch import save_file
from third_party import VARIANTS
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from facesnap_diffusers import AdapterError, FaceEncoderMismatchError, FaceIdentity, InputError
from facesnap_diffusers.base_models import empty_unet
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.interop import export_ip_adapter, ip_adapter_image_embeds
from facesnap_diffusers.interop.checkpoint import Checkpoint, recognize
from facesnap_diffusers.interop.conversion import convert_checkpoint


pytestmark = pytest.mark.slow


CALL = {**tiny.CALL, "num_inference_steps": 3, "guidance_scale": 5.0}


#: public file name: its size in bytes, how it is made in full size, bytes a number of image_proj and ip_adapter
PUBLIC_FILES = {
    "ip-adapter-faceid_sd15": (96_740_574, "sd1", third_party.faceid, {"lora_rank": 128}, (2, 2)),
    "ip-adapter-faceid-plusv2_sd15": (
        156_558_509,
        "sd1",
        third_party.faceid_plus,
        {"lora_rank": 128, "clip_width": 1280},
        (2, 2),
    ),
    "ip-adapter-faceid-plusv2_sdxl": (
        1_487_555_181,
        "sdxl",
        third_party.faceid_plus,
        {"lora_rank": 128, "clip_width": 1280},
        (2, 2),
    ),
    "ip-adapter-faceid-portrait-v11_sd15": (64_586_623, "sd1", third_party.portrait, {}, (2, 2)),
    "ip-adapter-faceid-portrait_sdxl": (749_822_515, "sdxl", third_party.portrait, {}, (2, 2)),
    "ip-adapter-faceid-portrait_sdxl_unnorm": (1_009_523_411, "sdxl", third_party.instantid, {"hidden": 1280}, (4, 2)),
    "InstantID/ip-adapter": (1_691_134_141, "sdxl", third_party.instantid, {"hidden": 1280}, (4, 4)),
}


@pytest.mark.parametrize("name", PUBLIC_FILES)
def test_the_layouts_have_the_size_of_the_public_files(name):
    """To the byte, but for the names and the pickle around each tensor: 102 to 371 bytes."""
    size, family, make, options, widths = PUBLIC_FILES[name]
    groups = make(empty_unet(family), **options)
    numbers = [sum(tensor.numel() for tensor in group.values()) for group in groups.values()]
    tensors = sum(len(group) for group in groups.values())
    around = size - sum(count * width for count, width in zip(numbers, widths))
    assert 100 * tensors < around < 400 * tensors
    # and every tensor has its place in the base model
    with torch.device("meta"):
        checkpoint = Checkpoint(recognize(groups["image_proj"], name), **groups, source=name)
        config, modules = convert_checkpoint(checkpoint, empty_unet(family))
    assert (config.base_family, list(modules)) == (family, ["mixer", "identity_attention"])
    assert sum(p.numel() for part in modules.values() for p in part.parameters()) == sum(numbers)


def base_for(name):
    return tiny.xl_pipeline() if "sdxl" in name else tiny.sd_pipeline()


def write(folder, name, checkpoint, suffix):
    if suffix == ".bin":
        torch.save(checkpoint, folder / (name + suffix))
    else:
        save_file(third_party.flat(checkpoint), folder / (name + suffix))
    return name + suffix


def stock_image(base, folder, weight_name, identity, scale):
    """What diffusers' documentation says to do with a FaceID checkpoint."""
    base.load_ip_adapter(str(folder), subfolder=None, weight_name=weight_name, image_encoder_folder=None)
    base.set_ip_adapter_scale(scale)
    projection = base.unet.encoder_hid_proj.image_projection_layers[0]
    with torch.no_grad():
        empty = tiny.image_encoder()(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-2]
    if hasattr(projection, "clip_embeds"):
        projection.clip_embeds = torch.stack([empty, identity.image_hidden_states[None]])
        projection.shortcut = "plusv2" in weight_name
    if "faceid" not in weight_name:
        embeds = torch.stack([empty, identity.image_hidden_states[None]])
        return base("a cat", ip_adapter_image_embeds=[embeds], generator=tiny.seeded(), **CALL).images
    embeds = identity.face_embeds[None, None]
    if "unnorm" in weight_name:  # (batch, images, sequence, width)
        embeds = embeds[None]
    embeds = torch.cat([torch.zeros_like(embeds), embeds])
    return base("a cat", ip_adapter_image_embeds=[embeds], generator=tiny.seeded(), **CALL).images


@pytest.mark.parametrize(
    ("suffix", "name"), [(suffix, name) for name in VARIANTS for suffix in (".bin", ".safetensors")]
)
def test_equals_stock_diffusers(name, suffix, tmp_path):
    make = third_party.VARIANTS[name]
    base = base_for(name)
    plain = base("a cat", generator=tiny.seeded(), **CALL).images
    plus = make in third_party.WITH_IMAGE_FEATURES
    weight_name = write(tmp_path, name, make(base.unet), suffix)
    identity = third_party.person_for(name)

    pipe = tiny.facesnap(base)
    encoder = {"image_encoder": tiny.image_encoder()} if plus else {}
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, **encoder)
    pipe.set_facesnap_scale(identity_scale=0.7)
    image = pipe("a cat", identity=identity, generator=tiny.seeded(), **CALL).images
    pipe.unload_facesnap_adapter()
    assert torch.equal(pipe("a cat", generator=tiny.seeded(), **CALL).images, plain)

    expected = stock_image(base, tmp_path, weight_name, identity, scale=0.7)
    assert (expected - plain).abs().max() > 1e-3
    tiny.assert_same_image(image, expected, atol=1e-4)


PER_PHOTO = ["faceid-portrait_sd15", "faceid-portrait_sdxl", "faceid-portrait_sdxl_unnorm"]


@pytest.mark.parametrize("name", [f"ip-adapter-{name}" for name in PER_PHOTO])
def test_portrait_sees_each_of_several_photos(name, tmp_path):
    base = base_for(name)
    weight_name = write(tmp_path, name, VARIANTS[name](base.unet), ".bin")
    photos = [third_party.person_for(name, seed=seed) for seed in range(5)]
    identity = FaceIdentity.fuse(photos)
    identity.save(tmp_path / "identity.safetensors")
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name)
    loaded = FaceIdentity.load(tmp_path / "identity.safetensors")
    image = pipe("a cat", identity=loaded, generator=tiny.seeded(), **CALL).images
    one = pipe("a cat", identity=photos[0], generator=tiny.seeded(), **CALL).images
    assert (image - one).abs().max() > 1e-3
    with pytest.raises(InputError, match="different numbers of photos"):
        pipe("a cat", identity=[identity, photos[0]], **CALL)
    export_ip_adapter(pipe, tmp_path / "exported.safetensors")
    exported = ip_adapter_image_embeds(pipe, identity)

    base.load_ip_adapter(str(tmp_path), subfolder=None, weight_name=weight_name, image_encoder_folder=None)
    base.set_ip_adapter_scale(1.0)
    embeds = torch.stack([photo.face_embeds for photo in photos])[None]
    embeds = torch.cat([torch.zeros_like(embeds), embeds])
    if "unnorm" in name:
        embeds = embeds[:, :, None]  # (batch, photos, sequence, width)
    expected = base("a cat", ip_adapter_image_embeds=[embeds], generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(image, expected, atol=1e-4)

    base.unload_ip_adapter()
    base.load_ip_adapter(str(tmp_path), subfolder=None, weight_name="exported.safetensors", image_encoder_folder=None)
    again = base("a cat", ip_adapter_image_embeds=[exported], generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(again, expected, atol=1e-5)


def test_lora_works_in_calls_with_a_face_only():
    base = tiny.sd_pipeline()
    plain = base("a cat", generator=tiny.seeded(), **CALL).images
    checkpoint = third_party.faceid(base.unet)
    pipe = tiny.facesnap(base)
    identity = third_party.faceid_person()

    def image():
        return pipe("a cat", identity=identity, generator=tiny.seeded(), **CALL).images

    pipe.load_facesnap_adapter(checkpoint)
    with_lora = image()
    assert torch.equal(pipe("a cat", generator=tiny.seeded(), **CALL).images, plain)
    pipe.set_facesnap_scale(identity_scale=0)
    assert torch.equal(image(), plain)
    without = {key: value for key, value in checkpoint["ip_adapter"].items() if "lora" not in key}
    pipe.load_facesnap_adapter({**checkpoint, "ip_adapter": without})
    assert (image() - with_lora).abs().max() > 1e-2
    assert not any(module._forward_hooks for module in base.unet.modules())


def test_embeddings_of_any_length_are_the_same_person():
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(third_party.faceid(base.unet))
    people = [third_party.faceid_person(length=length) for length in (1.0, 20.0)]
    images = [pipe("a cat", identity=who, generator=tiny.seeded(), **CALL).images for who in people]
    tiny.assert_same_image(*images, atol=1e-5)


def test_unnorm_embeddings_need_their_length(tmp_path):
    """The one of the family that is trained with embeddings as the recognizer gives them; only its name says so."""
    base = tiny.xl_pipeline()
    pipe = tiny.facesnap(base)
    name = "ip-adapter-faceid-portrait_sdxl_unnorm.bin"
    torch.save(third_party.instantid(base.unet), tmp_path / name)
    pipe.load_facesnap_adapter(tmp_path, weight_name=name)
    assert pipe.facesnap_config.parts == ["mixer", "identity_attention"]
    with pytest.raises(FaceEncoderMismatchError, match="normalize=False"):
        pipe("a cat", identity=third_party.faceid_person(), **CALL)


def test_survives_saving_as_an_adapter_of_our_own(tmp_path):
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    weight_name = write(tmp_path, "ip-adapter-faceid-plusv2_sd15", third_party.faceid_plus(base.unet), ".safetensors")
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, image_encoder=tiny.image_encoder())
    image = pipe("a cat", identity=third_party.faceid_person(True), generator=tiny.seeded(), **CALL).images
    pipe.save_facesnap_adapter(tmp_path / "ours")
    again = tiny.facesnap(tiny.sd_pipeline())
    again.load_facesnap_adapter(tmp_path / "ours", image_encoder=tiny.image_encoder())
    after = again("a cat", identity=third_party.faceid_person(True), generator=tiny.seeded(), **CALL).images
    assert torch.equal(after, image)


def spoiled(key_part, change):
    """A FaceID checkpoint with one tensor changed, or left out."""

    def make(unet):
        checkpoint = third_party.faceid(unet)
        for tensors in checkpoint.values():
            for key in [key for key in tensors if key_part in key][:1]:
                tensor = change(tensors.pop(key))
                if tensor is not None:
                    tensors[key] = tensor
        return checkpoint

    return make


def kolors_unet():
    return tiny.sd_unet(cross_attention_dim=2048)


def mixed(unet):
    return {
        "image_proj": third_party.faceid(unet)["image_proj"],
        "ip_adapter": third_party.faceid(tiny.xl_unet())["ip_adapter"],
    }


def one_layer_without_lora(unet):
    checkpoint = third_party.faceid(unet)
    attention = {key: value for key, value in checkpoint["ip_adapter"].items() if not key.startswith("2.")}
    return {**checkpoint, "ip_adapter": attention}


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


WRONG = {
    "not an adapter": (lambda unet: {"weight": torch.ones(2)}, "is not an identity adapter"),
    "Arc2Face": (lambda unet: dict(unet.state_dict()), "as Arc2Face is file, not supported, because it replaces"),
    "PhotoMaker": (
        lambda unet: {"id_encoder": {"a": torch.ones(1)}, "lora_weights": {"b": torch.ones(1)}},
        "a PhotoMaker file, not supported, because",
    ),
    "PuLID": (
        lambda unet: {"id_adapter.latents": torch.ones(1), "id_adapter_attn_layers.1.id_to_k.weight": torch.ones(1)},
        "a PuLID file, not supported, because",
    ),
    "ConsistentID": (
        lambda unet: {name: {"a": torch.ones(1)} for name in ("image_proj", "adapter_modules", "FacialEncoder")},
        "a ConsistentID file, not supported, because",
    ),
    "UniPortrait": (
        lambda unet: {name: {"a": torch.ones(1)} for name in ("faceid_proj", "faceid_adapter")},
        "a UniPortrait file, not supported, because",
    ),
    "Kolors": (
        lambda unet: third_party.plus_face(kolors_unet(), clip_width=1024),
        "for Kolors, not supported, because",
    ),
    "picture adapter": (
        lambda unet: {**third_party.faceid(unet), "image_proj": {"proj.weight": torch.ones(4, 4)}},
        "load_ip_adapter",
    ),
    "renamed": (third_party.faceid_plus, "version 1 or 2.*faceid_plus_v2=True or False"),
    "other family": (lambda unet: third_party.faceid(tiny.xl_unet()), "use a file made for"),
    "mixed": (mixed, "use a file made for|which this base model does not contain"),
    "InstantID with FaceID": (
        lambda unet: {**third_party.faceid(unet), "image_proj": third_party.instantid(unet)["image_proj"]},
        "mixes InstantID's",
    ),
    "a layer without LoRA": (one_layer_without_lora, "has no 2.to_q_lora"),
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
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(third_party.faceid(base.unet))
    before = pipe("a cat", identity=third_party.faceid_person(), generator=tiny.seeded(), **CALL).images
    torch.save(make(base.unet), tmp_path / "my adapter.bin")
    with pytest.raises(AdapterError, match=message) as caught:
        pipe.load_facesnap_adapter(tmp_path, weight_name="my adapter.bin")
    assert "\n" not in str(caught.value)
    after = pipe("a cat", identity=third_party.faceid_person(), generator=tiny.seeded(), **CALL).images
    assert torch.equal(after, before)
    assert "must not run" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"garbage" * 100])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_torn_file_gives_one_clear_line(content, suffix, tmp_path):
    (tmp_path / f"file{suffix}").write_bytes(content)
    pipe = tiny.facesnap(tiny.sd_pipeline())
    with pytest.raises(AdapterError, match="download it again") as caught:
        pipe.load_facesnap_adapter(tmp_path / f"file{suffix}")
    assert "\n" not in str(caught.value) and pipe.facesnap_config is None


def test_a_missing_file_gives_one_clear_line(tmp_path):
    with pytest.raises(AdapterError, match="weight_name"):
        tiny.facesnap(tiny.sd_pipeline()).load_facesnap_adapter(tmp_path, weight_name="absent.bin")


def test_version_2_of_plus_can_be_said(tmp_path):
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    checkpoint = third_party.faceid_plus(base.unet)
    images = []
    for v2 in (False, True):
        pipe.load_facesnap_adapter(checkpoint, faceid_plus_v2=v2, image_encoder=tiny.image_encoder())
        images.append(pipe("a cat", identity=third_party.faceid_person(True), generator=tiny.seeded(), **CALL).images)
    assert (images[0] - images[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            third_party.faceid_plus,
            {"faceid_plus_v2": False, "faceid_structure_scale": 0.5},
            "is not FaceID-Plus of version 2",
        ),
        (third_party.faceid, {"faceid_structure_scale": 0.5}, "is not FaceID-Plus of version 2"),
        (third_party.faceid, {"faceid_plus_v2": True}, "faceid_plus_v2 .* is not FaceID-Plus"),
    ],
)
def test_what_is_for_plus_alone_is_refused(make, options, message):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    with pytest.raises(AdapterError, match=message):
        pipe.load_facesnap_adapter(make(pipe.unet), **options)
    assert pipe.mixer is None


def test_from_the_hub(hub, tmp_path):
    base = tiny.sd_pipeline()
    name = write(tmp_path, "ip-adapter-faceid_sd15", third_party.faceid(base.unet), ".bin")
    hub.add_commit("h94/IP-Adapter-FaceID", {name: (tmp_path / name).read_bytes()})
    images = []
    for source, options in [(tmp_path / name, {}), ("h94/IP-Adapter-FaceID", {"weight_name": name})]:
        pipe = tiny.facesnap(base)
        pipe.load_facesnap_adapter(source, cache_dir=str(tmp_path / "cache"), **options)
        images.append(pipe("a cat", identity=third_party.faceid_person(), generator=tiny.seeded(), **CALL).images)
    assert torch.equal(*images)
    with pytest.raises(
        AdapterError, match="could not be loaded from the Hub.*its files are ip-adapter-faceid_sd15"
    ) as caught:
        pipe.load_facesnap_adapter(
            "h94/IP-Adapter-FaceID", weight_name="absent.bin", cache_dir=str(tmp_path / "cache")
        )
    assert "\n" not in str(caught.value)


def test_a_repository_without_the_name_of_a_file(hub, tmp_path):
    """It is said which of its files may be meant."""
    base = tiny.sd_pipeline()
    files = {"my_sdxl.bin": b"x", "mine/face.safetensors": b"x", "README.md": b"x"}
    hub.add_commit("somebody/adapters", files)
    for folder_file in files:
        (tmp_path / "folder" / folder_file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / folder_file).write_bytes(b"x")
    for name in ("somebody/adapters", tmp_path / "folder"):
        expected = r"name one with weight_name=: mine/face.safetensors; for other base models: my_sdxl.bin$"
        with pytest.raises(AdapterError, match=expected):
            tiny.facesnap(base).load_facesnap_adapter(name, cache_dir=str(tmp_path / "cache"))
    assert not any("resolve/" in request and "README" not in request for request in hub.requests)


def test_a_checkpoint_of_the_training_script(tmp_path):
    base = tiny.sd_pipeline()
    checkpoint = third_party.faceid(base.unet)
    torch.save(third_party.trained(checkpoint), tmp_path / "pytorch_model.bin")
    images = []
    for source in (checkpoint, tmp_path / "pytorch_model.bin"):
        pipe = tiny.facesnap(base)
        pipe.load_facesnap_adapter(source)
        images.append(pipe("a cat", identity=third_party.faceid_person(), generator=tiny.seeded(), **CALL).images)
    assert torch.equal(*images)
    expected = stock_image(
        base, *write_in(tmp_path, "ip-adapter-faceid_sd15", checkpoint), third_party.faceid_person(), 1.0
    )
    tiny.assert_same_image(images[1], expected, atol=1e-5)


def write_in(folder, name, checkpoint):
    return folder, write(folder, name, checkpoint, ".safetensors")


# from a photo


@pytest.mark.parametrize("name", ["ip-adapter-faceid-plus_sd15", "ip-adapter-faceid-plusv2_sdxl"])
def test_faceid_plus_from_a_photo_equals_the_authors_computation(name, tmp_path):
    """The crop is InsightFace's `norm_crop` of the detector's five points, the embedding the recognizer's."""
    base = base_for(name)
    weight_name = write(tmp_path, name, third_party.faceid_plus(base.unet), ".bin")
    encoder = encoder_of_arcface_crops()
    photo, face = third_party.photo_and_face("insightface/w600k_r50")
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, image_encoder=encoder)
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    image = pipe("a cat", face_image=photo, generator=tiny.seeded(), **CALL).images

    crop = norm_crop(photo, face.key_points, image_size=112)
    assert np.abs(crop.astype(int) - norm_crop(photo, face.five_points + 1.5, image_size=112)).max() > 5
    processor = CLIPImageProcessor(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    pixels = processor(PIL.Image.fromarray(crop), return_tensors="pt").pixel_values
    with torch.no_grad():
        states, empty = (
            encoder(values, output_hidden_states=True).hidden_states[-2]
            for values in (pixels, torch.zeros_like(pixels))
        )
    base.load_ip_adapter(str(tmp_path), subfolder=None, weight_name=weight_name, image_encoder_folder=None)
    base.set_ip_adapter_scale(1.0)
    projection = base.unet.encoder_hid_proj.image_projection_layers[0]
    projection.clip_embeds, projection.shortcut = torch.stack([empty, states]), "plusv2" in name
    embeds = torch.from_numpy(face.embedding / np.linalg.norm(face.embedding))[None, None]
    embeds = torch.cat([torch.zeros_like(embeds), embeds])
    expected = base("a cat", ip_adapter_image_embeds=[embeds], generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(image, expected, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in VARIANTS if "faceid" not in name])
def test_models_for_faces_equal_stock_diffusers_with_the_same_crop(name, tmp_path):
    """With an analyzer of any kind: they take no face embedding. Two photos give tokens of each."""
    base = base_for(name)
    weight_name = write(tmp_path, name, VARIANTS[name](base.unet), ".safetensors")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    photos = [third_party.photo_and_face("somebody's own recognizer", seed=seed) for seed in (0, 1)]
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(tmp_path, weight_name=weight_name, image_encoder=tiny.image_encoder())
    pipe.face_analyzer = third_party.FixedAnalyzer(*(face for _, face in photos))
    assert pipe.facesnap_config.face_embed_dim is None and pipe.facesnap_config.parts == [
        "mixer",
        "identity_attention",
    ]
    photo, _ = photos[0]
    image = pipe("a cat", face_image=photo, generator=tiny.seeded(), **CALL).images
    both = pipe("a cat", face_image=[photo for photo, _ in photos], generator=tiny.seeded(), **CALL).images
    assert (both - image).abs().max() > 1e-3

    crops = [PIL.Image.fromarray(align_for_clip(photo, face.landmarks, 32)) for photo, face in photos]
    base.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=processor)
    base.load_ip_adapter(str(tmp_path), subfolder=None, weight_name=weight_name, image_encoder_folder=None)
    base.set_ip_adapter_scale(1.0)
    expected = base("a cat", ip_adapter_image=crops[0], generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(image, expected, atol=1e-5)
    expected = base("a cat", ip_adapter_image=[crops], generator=tiny.seeded(), **CALL).images
    tiny.assert_same_image(both, expected, atol=1e-5)


def test_the_weight_of_the_structure(tmp_path):
    """FaceID-Plus v2: `s_scale` of its authors, the layer's `shortcut_scale` in diffusers."""
    base = tiny.sd_pipeline()
    name = write(tmp_path, "ip-adapter-faceid-plusv2_sd15", third_party.faceid_plus(base.unet), ".bin")
    identity = third_party.faceid_person(True)
    pipe = tiny.facesnap(base)
    encoder = {"image_encoder": tiny.image_encoder()}
    pipe.load_facesnap_adapter(tmp_path, weight_name=name, faceid_structure_scale=0.4, **encoder)
    pipe.save_facesnap_adapter(tmp_path / "ours")
    pipe.load_facesnap_adapter(tmp_path / "ours", **encoder)
    image = pipe("a cat", identity=identity, generator=tiny.seeded(), **CALL).images

    plain = stock_image(base, tmp_path, name, identity, scale=1.0)
    base.unet.encoder_hid_proj.image_projection_layers[0].shortcut_scale = 0.4
    embeds = torch.cat([torch.zeros_like(identity.face_embeds)[None, None], identity.face_embeds[None, None]])
    expected = base("a cat", ip_adapter_image_embeds=[embeds], generator=tiny.seeded(), **CALL).images
    assert (plain - expected).abs().max() > 1e-4
    tiny.assert_same_image(image, expected, atol=1e-4)


def encoder_of_arcface_crops():
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=third_party.CLIP_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=112,
        patch_size=28,
        projection_dim=16,
    )
    return CLIPVisionModelWithProjection(config).eval()


class TestBesideAStockAdapter:
    """The same FaceID weights as a FaceSnap adapter and as stock IP-Adapters: attention adds up, so images must agree."""

    IDENTITY = third_party.faceid_person()
    HALF = torch.zeros(1, 1, 64, 64)
    HALF[..., :32] = 1

    def load(self, base, folder, scales):
        checkpoint = third_party.faceid(base.unet, lora_rank=0)
        write(folder, "faceid", checkpoint, ".bin")
        names = ["faceid.bin"] * len(scales)
        base.load_ip_adapter([str(folder)] * len(scales), [None] * len(scales), names, image_encoder_folder=None)
        base.set_ip_adapter_scale(scales)
        return checkpoint

    def embeds(self, count=1):
        embeds = self.IDENTITY.face_embeds[None, None]
        return [torch.cat([torch.zeros_like(embeds), embeds])] * count

    def image(self, pipe, count=1, masks=None, **face):
        masks = {} if masks is None else {"cross_attention_kwargs": {"ip_adapter_masks": masks}}
        call = {**CALL, **masks, **face}
        return pipe("a cat", ip_adapter_image_embeds=self.embeds(count), generator=tiny.seeded(), **call).images

    @pytest.mark.parametrize("masks", [False, True], ids=["everywhere", "with ip_adapter_masks"])
    @pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline], ids=["sd", "xl"])
    def test_a_face_and_a_stock_adapter_are_two_stock_adapters(self, make, masks, tmp_path):
        base = make()
        checkpoint = self.load(base, tmp_path, [0.3, 0.6])
        expected = self.image(base, 2, [torch.ones(1, 1, 64, 64), self.HALF] if masks else None)
        base.unload_ip_adapter()

        pipe = tiny.facesnap(base)
        self.load(pipe, tmp_path, [0.6])
        pipe.load_facesnap_adapter(checkpoint)
        pipe.set_facesnap_scale(identity_scale=0.3)
        mask = [self.HALF] if masks else None
        image = self.image(pipe, masks=mask, identity=self.IDENTITY)
        tiny.assert_same_image(image, expected, atol=1e-4)

        alone = self.image(pipe, masks=mask)
        assert (alone - image).abs().max() > 1e-3
        pipe.set_facesnap_scale(identity_scale=0)
        assert torch.equal(self.image(pipe, masks=mask, identity=self.IDENTITY), alone)
        if masks:
            pipe.set_facesnap_scale(identity_scale=0.3)
            nowhere = self.image(pipe, masks=[torch.zeros(1, 1, 64, 64)], identity=self.IDENTITY)
            pipe.set_ip_adapter_scale(0)
            without = self.image(pipe, identity=self.IDENTITY)
            tiny.assert_same_image(nowhere, without, atol=1e-5)
            assert (nowhere - image).abs().max() > 1e-3

    @pytest.mark.parametrize("order", ["before", "after"])
    def test_a_stock_faceid_with_its_lora(self, order, tmp_path):
        """Stock diffusers puts the LoRA of a FaceID checkpoint into the UNet."""
        stock = tiny.sd_pipeline()
        write(tmp_path, "faceid", third_party.faceid(stock.unet), ".bin")
        tiny.with_adapter(tiny.sd_pipeline()).save_facesnap_adapter(tmp_path / "facesnap")

        def load(pipe):
            pipe.load_ip_adapter(str(tmp_path), None, "faceid.bin", image_encoder_folder=None)
            pipe.set_ip_adapter_scale(0.7)

        load(stock)
        expected = self.image(stock)
        pipe = tiny.facesnap(tiny.sd_pipeline())
        loads = [load, lambda pipe: pipe.load_facesnap_adapter(tmp_path / "facesnap")]
        for each in loads if order == "before" else loads[::-1]:
            each(pipe)
        assert torch.equal(self.image(pipe), expected)
        image = self.image(pipe, identity=tiny.identity())
        assert image.isfinite().all() and (image - expected).abs().max() > 1e-3
        assert (image - self.image(pipe, identity=tiny.identity(4))).abs().max() > 1e-4
        pipe.set_facesnap_scale(0, 0)
        assert torch.equal(self.image(pipe, identity=tiny.identity()), expected)
        pipe.unload_facesnap_adapter()
        assert torch.equal(self.image(pipe), expected)
