"""Identity attention of one adapter with the FFRNet of another, each with the tokens that it was trained with."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from command_line import command
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from faces.test_key_points import authors_drawing
from interop.test_instantid import resampler
from safetensors.torch import save_file
from transformers import CLIPImageProcessor

from facesnap_diffusers import (
    AdapterError,
    FaceEncoderMismatchError,
    FaceIdentity,
    FaceSnapImg2ImgPipeline,
    HeadPose,
    InputError,
    NoFaceFoundError,
    Person,
)
from facesnap_diffusers.faces import analyzers
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.modular import FaceSnapXLBlocks, load_facesnap_adapter


pytestmark = pytest.mark.slow


CALL = {**tiny.CALL, "num_inference_steps": 3, "guidance_scale": 5.0}
PLUS_FACE = "ip-adapter-plus-face_sdxl_vit-h.safetensors"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Folders of plus-face and InstantID for one base model, of FaceID and an adapter of our own for another."""
    root = tmp_path_factory.mktemp("adapters")
    xl, sd = tiny.xl_pipeline(), tiny.sd_pipeline()
    for name in ("plus", "instantid", "faceid"):
        (root / name).mkdir()
    save_file(third_party.flat(third_party.plus_face(xl.unet)), root / "plus" / PLUS_FACE)
    torch.save(third_party.instantid(xl.unet), root / "instantid" / "ip-adapter.bin")
    third_party.instantid_controlnet(xl.unet).save_pretrained(root / "instantid" / "ControlNetModel")
    save_file(third_party.flat(third_party.faceid(sd.unet)), root / "faceid" / "ip-adapter-faceid_sd15.safetensors")
    ours = tiny.facesnap(sd)
    tiny.add_adapter(ours, recommended_scales={"landmark_scale": 0.7}, license="mit")
    ours.save_facesnap_adapter(root / "ours")
    return root


def faceid_with_ours(adapters, **options):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    pipe.load_facesnap_adapter(
        adapters / "faceid" / "ip-adapter-faceid_sd15.safetensors", landmarks_from=adapters / "ours", **options
    )
    return pipe


def person():
    """Somebody as both adapters of [`faceid_with_ours`] see them."""
    of_ffrnet = dataclasses.replace(tiny.identity(), image_encoder_id="ffrnet_image_encoder")
    return dataclasses.replace(third_party.faceid_person(), of_ffrnet=of_ffrnet)


def with_context(net, context):
    """A stock ControlNet that is told something else than the text."""
    forward = net.forward

    def told(sample, timestep, encoder_hidden_states, **kwargs):
        return forward(sample, timestep, encoder_hidden_states=context, **kwargs)

    net.forward = told
    return net


def test_plus_face_with_instantid_equals_stock_diffusers(adapters):
    """A stock IP-Adapter and a stock ControlNet whose context are InstantID's tokens, written out from its paper."""
    base = tiny.xl_pipeline()
    photo, face = third_party.photo_and_face("insightface/glintr100")
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(
        adapters / "plus",
        weight_name=PLUS_FACE,
        landmarks_from=adapters / "instantid",
        image_encoder=tiny.image_encoder(),
    )
    assert pipe.facesnap_config.parts == ["mixer", "identity_attention", "ffrnet"]
    assert pipe.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 0.8}  # each author's
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    image = pipe("a cat", face_image=photo, generator=tiny.seeded(), **CALL).images

    checkpoint = torch.load(adapters / "instantid" / "ip-adapter.bin", weights_only=True)
    embeds = torch.from_numpy(face.embedding)[None, None]
    tokens = resampler(checkpoint["image_proj"], torch.cat([torch.zeros_like(embeds), embeds]), heads=2)
    net = with_context(ControlNetModel.from_pretrained(adapters / "instantid" / "ControlNetModel"), tokens)
    stock = tiny._quiet(StableDiffusionXLControlNetPipeline.from_pipe(base, controlnet=net))
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    stock.register_modules(image_encoder=tiny.image_encoder(), feature_extractor=processor)
    stock.load_ip_adapter(str(adapters / "plus"), subfolder=None, weight_name=PLUS_FACE, image_encoder_folder=None)
    stock.set_ip_adapter_scale(1.0)
    expected = stock(
        "a cat",
        image=PIL.Image.fromarray(authors_drawing((64, 64), face.key_points)),
        ip_adapter_image=PIL.Image.fromarray(align_for_clip(photo, face.landmarks, 32)),
        controlnet_conditioning_scale=0.8,
        generator=tiny.seeded(),
        **CALL,
    ).images
    tiny.assert_same_image(image, expected, atol=1e-4)


def test_faceid_with_a_facesnap_adapter_equals_stock_diffusers(adapters, monkeypatch):
    """Two recognizers look at one photo; the FFRNet's tokens are those that its adapter makes alone."""
    photo, face = third_party.photo_and_face("insightface/w600k_r50", length=1.0)
    other = dataclasses.replace(face, encoder=tiny.FACE_ENCODER, embedding=tiny.identity().face_embeds.numpy())
    monkeypatch.setitem(analyzers._shared, (face.encoder, True), third_party.FixedAnalyzer(face))
    pipe = faceid_with_ours(adapters)
    pipe.face_analyzer = third_party.FixedAnalyzer(other)  # the other recognizer is the default one
    image = pipe("a cat", face_image=photo, pose=HeadPose(yaw=10), generator=tiny.seeded(), **CALL).images

    base = tiny.sd_pipeline()
    alone = tiny.facesnap(base)
    alone.load_facesnap_adapter(adapters / "ours", parts=["mixer", "ffrnet", "landmark_predictor"])
    alone.face_analyzer = third_party.FixedAnalyzer(other)
    identity = alone.encode_face(photo)
    points = alone.predict_landmarks(identity, pose=HeadPose(yaw=10), height=64, width=64)
    tokens, unconditional = alone.face_conditioner().tokens([identity])
    net = with_context(
        ControlNetModel.from_pretrained(adapters / "ours" / "ffrnet"), torch.cat([unconditional, tokens])
    )
    stock = tiny._quiet(StableDiffusionControlNetPipeline.from_pipe(base, controlnet=net))
    name = "ip-adapter-faceid_sd15.safetensors"
    stock.load_ip_adapter(str(adapters / "faceid"), subfolder=None, weight_name=name, image_encoder_folder=None)
    stock.set_ip_adapter_scale(1.0)
    embeds = torch.from_numpy(face.embedding)[None, None]
    expected = stock(
        "a cat",
        image=alone.face_conditioner().landmark_picture(points, 64, 64),
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embeds), embeds])],
        controlnet_conditioning_scale=0.7,
        generator=tiny.seeded(),
        **CALL,
    ).images
    tiny.assert_same_image(image, expected, atol=1e-5)


def test_each_adapter_alone_is_what_remains_without_the_other(adapters):
    """By their scales; with one person and with several."""
    both, faceid, ours = (
        faceid_with_ours(adapters),
        tiny.facesnap(tiny.sd_pipeline()),
        tiny.facesnap(tiny.sd_pipeline()),
    )
    faceid.load_facesnap_adapter(adapters / "faceid" / "ip-adapter-faceid_sd15.safetensors")
    ours.load_facesnap_adapter(adapters / "ours", parts=["mixer", "ffrnet", "landmark_predictor"])
    one = person()
    two = dataclasses.replace(
        third_party.faceid_person(seed=6),
        of_ffrnet=dataclasses.replace(tiny.identity(seed=8), image_encoder_id="ffrnet_image_encoder"),
    )
    boxes = [(0.05, 0.2, 0.45, 0.8), (0.55, 0.2, 0.95, 0.8)]

    def images(pipe, of, **scales):
        pipe.set_facesnap_scale(**scales)
        people = [Person(of(who), box) for who, box in zip((one, two), boxes)]
        return [
            pipe("a cat", generator=tiny.seeded(), **faces, **CALL).images
            for faces in ({"identity": of(one)}, {"people": people})
        ]

    def as_ours(who):
        return dataclasses.replace(who.of_ffrnet, image_encoder_id="image_encoder")

    for image, expected in zip(
        images(both, lambda who: who, identity_scale=1.0, landmark_scale=0.0), images(faceid, lambda who: who)
    ):
        tiny.assert_same_image(image, expected, atol=1e-5)
    for image, expected in zip(
        images(both, lambda who: who, identity_scale=0.0, landmark_scale=0.7), images(ours, as_ours)
    ):
        tiny.assert_same_image(image, expected, atol=1e-5)


def test_the_ffrnet_of_a_combination_keeps_the_image_encoder_that_both_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 2), ("b", 5)):
        pipe = tiny.facesnap(tiny.sd_pipeline())
        tiny.add_adapter(pipe, seed=seed, image_encoder_id="own/clip")
        pipe.save_facesnap_adapter(tmp_path / name)
    tiny.image_encoder().save_pretrained(tmp_path / "own/clip")  # now a folder, which becomes a part of what is saved
    shared = tiny.facesnap(tiny.sd_pipeline())
    shared.load_facesnap_adapter(tmp_path / "a", landmarks_from=tmp_path / "b")
    shared.save_facesnap_adapter(tmp_path / "shared")
    other = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(other, seed=7)
    other.face_image_encoder = tiny.image_encoder(seed=33)
    other.save_facesnap_adapter(tmp_path / "other")
    pipe = tiny.facesnap(tiny.sd_pipeline())
    pipe.load_facesnap_adapter(tmp_path / "other", landmarks_from=tmp_path / "shared")

    def states(pipe):
        photo, embedding = PIL.Image.new("RGB", (120, 100), "teal"), tiny.identity().face_embeds
        who = pipe.encode_face(photo, embedding=embedding, landmarks=tiny.face_points())
        tiny.generate(pipe, identity=who)
        return who.image_hidden_states, who.of_ffrnet.image_hidden_states

    own, of_ffrnet = states(pipe)
    assert not torch.allclose(own, of_ffrnet)
    torch.testing.assert_close(of_ffrnet, states(shared)[1])


def test_survives_saving_and_other_pipelines(adapters, tmp_path):
    pipe = faceid_with_ours(adapters)
    image = tiny.generate(pipe, identity=person())
    pipe.save_facesnap_adapter(tmp_path / "both")
    person().save(tmp_path / "person.safetensors")
    loaded = FaceIdentity.load(tmp_path / "person.safetensors")
    again = tiny.facesnap(tiny.sd_pipeline())
    again.load_facesnap_adapter(tmp_path / "both")
    assert again.facesnap_config == pipe.facesnap_config
    assert again.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 0.7}
    assert torch.equal(tiny.generate(again, identity=loaded), image)
    twin = tiny._quiet(type(pipe)(**again.components, requires_safety_checker=False))
    assert torch.equal(tiny.generate(twin, identity=loaded), image)
    again.face_analyzer = third_party.FixedAnalyzer(third_party.photo_and_face(tiny.FACE_ENCODER)[1])
    picture_call = {"image": tiny.picture(), "strength": 0.9, "num_inference_steps": 3, "output_type": "pt"}
    redrawn = [
        FaceSnapImg2ImgPipeline.from_pipe(of)("a cat", generator=tiny.seeded(), **face, **picture_call).images
        for of, face in ((again, {"identity": loaded}), (tiny.sd_pipeline(), {}))
    ]
    assert (redrawn[0] - redrawn[1]).abs().max() > 1e-3
    # as the second adapter of another combination, and without its FFRNet
    third = tiny.facesnap(tiny.sd_pipeline())
    third.load_facesnap_adapter(
        adapters / "faceid" / "ip-adapter-faceid_sd15.safetensors", landmarks_from=tmp_path / "both"
    )
    assert torch.equal(tiny.generate(third, identity=loaded), image)
    third.load_facesnap_adapter(tmp_path / "both", parts=["mixer", "identity_attention"])
    assert third.facesnap_config.ffrnet_config is None and third.ffrnet_mixer is None
    shown = " ".join(command("info", tmp_path / "both").output.split())
    assert "ffrnet_mixer" in shown and "ffrnet_image_encoder" in shown
    assert "face recognizer insightface/w600k_r50 and dlib/face_recognition_resnet_model_v1" in shown
    assert "identity 1, landmarks 0.7, license not stated and mit" in shown
    card = (tmp_path / "both" / "README.md").read_text()
    assert "license: other" in card and "4, FFRNet 5" in card


def test_converts(adapters, tmp_path):
    tiny.xl_pipeline().save_pretrained(tmp_path / "base")
    tiny.image_encoder().save_pretrained(tmp_path / "clip")
    options = ["--weight-name", PLUS_FACE, "--landmarks-from", adapters / "instantid", "--base", tmp_path / "base"]
    command("convert", adapters / "plus", tmp_path / "both", *options, "--image-encoder", tmp_path / "clip")
    pipe = tiny.facesnap(tiny.xl_pipeline())
    pipe.load_facesnap_adapter(tmp_path / "both", image_encoder=tiny.image_encoder())
    images = []
    photo, face = third_party.photo_and_face("insightface/glintr100")
    for landmarks_from in (None, adapters / "instantid"):
        if landmarks_from is not None:
            pipe.load_facesnap_adapter(
                adapters / "plus",
                weight_name=PLUS_FACE,
                landmarks_from=landmarks_from,
                image_encoder=tiny.image_encoder(),
            )
        pipe.face_analyzer = third_party.FixedAnalyzer(face)
        images.append(tiny.generate(pipe, face_image=photo))
    assert torch.equal(*images)


def test_modular_blocks_give_the_same(adapters):
    base = tiny.xl_pipeline()
    source = (adapters / "plus",)
    options = {
        "weight_name": PLUS_FACE,
        "landmarks_from": adapters / "instantid",
        "image_encoder": tiny.image_encoder(),
    }
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(*source, **options)
    modular = FaceSnapXLBlocks().init_pipeline()
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    modular.update_components(**{name: base.components[name] for name in names})
    load_facesnap_adapter(modular, *source, **options)
    modular.set_progress_bar_config(disable=True)
    photo, face = third_party.photo_and_face("insightface/glintr100")
    pipe.face_analyzer = third_party.FixedAnalyzer(face)
    identity = pipe.encode_face(photo)
    call = {"identity": identity, "num_inference_steps": 2, "height": 64, "width": 64, "output_type": "pt"}
    image = modular(prompt="a cat", generator=tiny.seeded(), output="images", **call)
    expected = pipe("a cat", generator=tiny.seeded(), guidance_scale=7.5, **call).images
    tiny.assert_same_image(image, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda both: (both / "ffrnet_mixer" / "config.json").unlink(), "no config.json"),
        (lambda both: (both / "ffrnet_image_encoder" / "model.safetensors").write_bytes(b"x"), "image encoder"),
        (lambda both: change_config(both, num_tokens=6), "expected 6"),
        (lambda both: change_config(both, num_tokens="six"), "ffrnet_config.num_tokens is 'six'"),
        (lambda both: change_config(both, surprise=1), "unknown key ffrnet_config.surprise"),
    ],
)
def test_all_or_nothing(change, message, adapters, tmp_path):
    pipe = faceid_with_ours(adapters)
    pipe.save_facesnap_adapter(tmp_path / "both")
    components, config = dict(pipe.components), dict(pipe.config)
    change(tmp_path / "both")
    with pytest.raises(AdapterError, match=message) as caught:
        pipe.load_facesnap_adapter(tmp_path / "both")
    assert "\n" not in str(caught.value)
    assert pipe.components == components and dict(pipe.config) == config


def change_config(folder, **values):
    path = folder / "facesnap_config.json"
    config = json.loads(path.read_text())
    config["ffrnet_config"] |= values
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("landmarks_from", "options", "error", "message"),
    [
        ("H94/IP-Adapter-FaceID", {}, AdapterError, "does not contain ffrnet"),
        ("instantx/instantid", {}, AdapterError, "made for base models of family sdxl, this one is of"),
        ("somebody/ours", {}, AdapterError, "made for base models of family custom-64"),
        ("somebody/attention", {}, AdapterError, "does not contain ffrnet, it has"),
        ("somebody/ours", {"parts": ["mixer", "ffrnet"]}, InputError, "parts= and landmarks_from="),
        (7, {}, InputError, "landmarks_from must be"),
    ],
)
def test_what_cannot_be_combined_is_refused_before_any_weights(
    landmarks_from, options, error, message, adapters, hub, tmp_path
):
    (tmp_path / "ours").mkdir()
    values = json.loads((adapters / "ours" / "facesnap_config.json").read_text())
    for name, changes in (
        ("somebody/ours", {"base_family": "custom-64"}),
        ("somebody/attention", {"parts": ["mixer", "identity_attention"]}),
    ):
        files = {"facesnap_config.json": json.dumps(values | changes).encode(), "ffrnet/config.json": b"{}"}
        hub.add_commit(name, {**files, "mixer/diffusion_pytorch_model.safetensors": b"x"})
    pipe = tiny.facesnap(tiny.sd_pipeline())
    with pytest.raises(error, match=message) as caught:
        pipe.load_facesnap_adapter(
            "H94/ip-adapter-faceid", landmarks_from=landmarks_from, cache_dir=str(tmp_path / "cache"), **options
        )
    assert "\n" not in str(caught.value) and pipe.facesnap_config is None
    assert not [path for path in hub.sent if not path.endswith("facesnap_config.json")]


def test_identities_must_be_of_both_adapters(adapters):
    pipe = faceid_with_ours(adapters)
    with pytest.raises(FaceEncoderMismatchError, match="encode the face again"):
        pipe("a cat", identity=third_party.faceid_person(), **CALL)
    with pytest.raises(FaceEncoderMismatchError, match="encode the face again"):
        pipe("a cat", identity=tiny.identity(), **CALL)
    with pytest.raises(InputError, match="embedding= is of one face recognizer"):
        pipe.encode_face(embedding=torch.ones(512))
    with pytest.raises(FaceEncoderMismatchError, match="from a combination of two"):
        FaceIdentity.fuse([person(), third_party.faceid_person()])
    fused = FaceIdentity.fuse([person(), person()])
    assert len(fused.photo_embeds) == len(fused.of_ffrnet.photo_embeds) == 2


def test_both_recognizers_look_at_the_same_face(adapters):
    """In a photo of two people each recognizer may take another face for the largest."""
    photo, face = third_party.photo_and_face("insightface/w600k_r50", length=1.0)
    embedding = tiny.identity().face_embeds.numpy()
    far = np.array([-200, -200, -200, -200], np.float32)

    class Both(third_party.FixedAnalyzer):
        def analyze(self, image):
            return list(self.faces)

    same = dataclasses.replace(face, encoder=tiny.FACE_ENCODER, embedding=embedding)
    larger = dataclasses.replace(same, box=3 * face.box + far, embedding=-embedding)
    conditioner = faceid_with_ours(adapters).face_conditioner()

    def encoded(*faces):
        of_ffrnet = dataclasses.replace(conditioner.of_ffrnet, face_analyzer=Both(*faces))
        both = dataclasses.replace(conditioner, face_analyzer=Both(face), of_ffrnet=of_ffrnet)
        return both.encode_face(photo).of_ffrnet

    assert np.array_equal(encoded(larger, same).face_embeds.numpy(), embedding)
    with pytest.raises(NoFaceFoundError, match="finds no face at"):
        encoded(dataclasses.replace(larger, box=face.box + far))
