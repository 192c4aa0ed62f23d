"""The same face gives the same tokens and the same landmark picture wherever it is used, bit for bit."""

import itertools
import os
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from skimage.data import astronaut

import facesnap_diffusers
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.interop import ip_adapter_image_embeds
from facesnap_diffusers.interop.mixers import (
    FaceIDMixer,
    FaceIDPlusMixer,
    FullFaceMixer,
    ImagePromptMixer,
    InstantIDMixer,
    PlusFaceMixer,
)
from facesnap_diffusers.modular import FaceSnapXLIdentityStep
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.training_config import IdentityLossConfig, LossConfig, ValidationConfig
from facesnap_diffusers.training.validation import sample_picture


pytestmark = pytest.mark.slow


PIPELINES = {
    "sd": ["FaceSnapPipeline", "FaceSnapImg2ImgPipeline", "FaceSnapInpaintPipeline"],
    "xl": ["FaceSnapXLPipeline", "FaceSnapXLImg2ImgPipeline", "FaceSnapXLInpaintPipeline"],
}
STATES = 5  # of the tiny image encoder, for a crop
IMAGE = {"image_embed_dim": 24, "image_sequence_length": STATES}
MIXERS = {
    "facesnap": None,  # the one that `tiny.add_adapter` makes
    "faceid": lambda sizes: FaceIDMixer(**sizes, num_tokens=4),
    "faceid-plus": lambda sizes: FaceIDPlusMixer(**sizes, **IMAGE, hidden_size=64, num_heads=1),
    "plus-face": lambda sizes: PlusFaceMixer(
        sizes["cross_attention_dim"], **IMAGE, num_tokens=6, hidden_size=64, num_heads=1
    ),
    "full-face": lambda sizes: FullFaceMixer(sizes["cross_attention_dim"], **IMAGE),
    "instantid": lambda sizes: InstantIDMixer(**sizes, hidden_size=64, num_heads=1),
}
ALL = [
    (family, mixer, {"landmark_style": style, "image_crop": crop, "normalized_embeds": normalized})
    for style, crop, normalized, mixer, family in itertools.product(
        ["facesnap72", "instantid5"], ["head", "arcface"], [True, False], MIXERS, PIPELINES
    )
]
# Every fifth meets every pair of values; all 96 with FACESNAP_TEST_ALL=1.
CONDITIONS = ALL if "FACESNAP_TEST_ALL" in os.environ else ALL[::5]
PHOTO = PIL.Image.fromarray(astronaut()).crop((100, 0, 356, 256))
SIZE = 64


class OneFace:
    """A recognizer that sees the same face in every photo, with an embedding of unit length or of its own."""

    encoder, embedding_dim = tiny.FACE_ENCODER, tiny.FACE_EMBED_DIM

    def __init__(self, normalized: bool):
        embedding = np.random.default_rng(0).normal(size=self.embedding_dim)
        self.embedding = embedding / np.linalg.norm(embedding) * (1 if normalized else 20)

    def analyze(self, image):
        landmarks = tiny.face_points().numpy().astype(float) + [60, 40]
        box = np.concatenate([landmarks.min(0), landmarks.max(0)])
        return [Face(image, box, landmarks, self.embedding, 1.0, self.encoder)]


def adapter_pipeline(family, mixer, condition):
    pipe = tiny.facesnap(tiny.sd_pipeline() if family == "sd" else tiny.xl_pipeline())
    tiny.add_adapter(pipe, **condition)
    if MIXERS[mixer] is not None:
        sizes = {"cross_attention_dim": pipe.mixer.cross_attention_dim, "face_embed_dim": tiny.FACE_EMBED_DIM}
        other = MIXERS[mixer](sizes).eval().requires_grad_(False)
        if isinstance(other, ImagePromptMixer):
            other.set_image_encoder(pipe.face_image_encoder)
        pipe.register_modules(mixer=other)
        changes = {"num_tokens": other.num_tokens}
        if other.image_embed_dim is None:
            pipe.register_modules(face_image_encoder=None, face_image_processor=None)
            changes["image_encoder_id"] = None
        if other.face_embed_dim is None:
            changes["face_embed_dim"] = None
        pipe.register_to_config(facesnap_config=vars(pipe.facesnap_config.replace(**changes)))
    pipe.face_analyzer = OneFace(condition["normalized_embeds"])
    return pipe


@contextmanager
def seen_tokens_and_pictures(pipe):
    """The conditional tokens and the embedded landmark pictures that reach FFRNet."""
    seen = []

    def note(net, args, kwargs):
        seen.append((kwargs["encoder_hidden_states"], kwargs["controlnet_cond"]))

    handle = pipe.ffrnet.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    handle.remove()


def seen_by_ffrnet(pipe, **arguments):
    """Those of a call."""
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    with seen_tokens_and_pictures(pipe) as seen:
        pipe("a cat", **settings, height=SIZE, width=SIZE, **arguments)
    return seen[0]


def picture_arguments(name):
    image = torch.rand(1, 3, SIZE, SIZE, generator=tiny.seeded())
    arguments = {} if "Img2Img" not in name and "Inpaint" not in name else {"image": image, "strength": 1.0}
    return {**arguments, "mask_image": torch.ones(1, 1, SIZE, SIZE)} if "Inpaint" in name else arguments


@pytest.mark.parametrize(
    ("family", "mixer", "condition"),
    CONDITIONS,
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_every_user_of_the_conditioner(family, mixer, condition):
    base = adapter_pipeline(family, mixer, condition)
    conditioner = base.face_conditioner()
    identities = conditioner.identities(PHOTO)
    tokens, unconditional = conditioner.tokens(identities)
    points = base.predict_landmarks(identities, height=SIZE, width=SIZE)
    picture = conditioner.landmark_picture(points, SIZE, SIZE)

    for name in PIPELINES[family]:
        pipe = tiny.facesnap(base, getattr(facesnap_diffusers, name))
        arguments = picture_arguments(name)
        if arguments:  # a face stands where the given picture has one, unless the caller says where
            arguments["landmarks"] = points
        seen = seen_by_ffrnet(pipe, face_image=PHOTO, **arguments)
        assert torch.equal(seen[0], tokens), name
        torch.testing.assert_close(seen[1], base.ffrnet.embed_landmarks(picture), atol=1e-6, rtol=0)

    check_training(base, identities[0], points, tokens, unconditional, picture)
    if mixer != "faceid-plus":
        check_export(base, identities[0], tokens, unconditional)
    if family == "xl":
        check_modular(base, tokens, unconditional, picture)


def check_training(pipe, identity, points, tokens, unconditional, picture):
    """What the objective makes of a sample of the same face, and what its validation images get."""
    conditioner = pipe.face_conditioner()
    crops = {}
    if conditioner.image_encoder is not None:
        crop = conditioner.image_crop(np.array(PHOTO), identity.landmarks.numpy())
        crops["clip_crop"] = pipe.face_image_processor(crop, return_tensors="pt").pixel_values
    parts = ["mixer", "ffrnet", "identity_attention"]
    objective = Objective(pipe, parts, LossConfig(), IdentityLossConfig(weight=0.0)).requires_grad_(False)
    left_out = torch.tensor([False, True])
    batch = {
        "caption": ["a cat", "a cat"],
        "without_text": left_out,
        "without_identity": left_out,
        "without_landmarks": left_out,
        "face_embeds": identity.face_embeds.expand(2, -1),
        "landmarks": points.expand(2, -1, -1),
        "noise": torch.zeros(2, 4, SIZE // pipe.vae_scale_factor, SIZE // pipe.vae_scale_factor),
        "sizes": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2),
    }
    # one crop at a time, as the pipelines encode them: matrix products of other sizes may round otherwise
    states = None
    if crops:
        states = conditioner.image_states(crops["clip_crop"])
        assert torch.equal(states[0].float(), identity.image_hidden_states)
        states = states.expand(2, -1, -1)
    two = {name: pixels.expand(2, -1, -1, -1) for name, pixels in crops.items()}
    conditions = objective.encode_conditions({**batch, **two})
    torch.testing.assert_close(conditions["identity_tokens"], torch.cat([tokens, unconditional]), atol=1e-5, rtol=0)
    mixed = conditioner.mix(batch["face_embeds"], states, left_out)
    assert torch.equal(mixed, torch.cat([tokens, unconditional]))
    assert torch.equal(conditions["landmark_picture"][:1], picture)
    sample = {**crops, "pixel_values": torch.zeros(1, 3, SIZE, SIZE)}
    sample |= {key: batch[key][:1] for key in ("caption", "face_embeds", "landmarks")}
    with seen_tokens_and_pictures(objective.pipeline) as seen:
        sample_picture(objective, sample, ValidationConfig(inference_steps=1, guidance_scale=1.0), seed=0)
    embedded = objective.pipeline.ffrnet.embed_landmarks(picture)
    assert torch.equal(seen[0][0], tokens)
    torch.testing.assert_close(seen[0][1], embedded, atol=1e-6, rtol=0)


def check_export(pipe, identity, tokens, unconditional):
    """What a stock IP-Adapter is given becomes the same tokens by the norm that ends its projection."""
    embeds = ip_adapter_image_embeds(pipe, identity)
    normed = pipe.mixer.output_norm(embeds.reshape(2, *tokens.shape[1:]))
    assert torch.equal(normed, torch.cat([unconditional, tokens]))


def check_modular(pipe, tokens, unconditional, picture):
    step = FaceSnapXLIdentityStep().init_pipeline()
    names = [spec.name for spec in step.blocks.expected_components]
    step.update_components(
        **{name: getattr(pipe, name) for name in names}, facesnap_config=pipe.config.facesnap_config
    )
    step.face_analyzer = pipe.face_analyzer
    text = torch.zeros(1, 7, tokens.shape[-1])
    arguments = {"prompt_embeds": text, "negative_prompt_embeds": text, "height": SIZE, "width": SIZE}
    state = step(face_image=PHOTO, **arguments)
    assert torch.equal(state.get("prompt_embeds")[:, 7:], tokens)
    assert torch.equal(state.get("negative_prompt_embeds")[:, 7:], unconditional)
    pictures = [v for v in state.values.values() if isinstance(v, torch.Tensor) and v.shape == picture.shape]
    assert any(torch.equal(each, picture) for each in pictures)
