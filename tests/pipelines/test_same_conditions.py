"""The same face gives the same tokens and the same landmark picture wherever it is used, bit for bit."""

import io
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
from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import PreparedFaces, ShardWriter
from facesnap_diffusers.faces.face import Face
from facesnap_diffusers.faces.key_points import five_points
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
from facesnap_diffusers.steering import Steering
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.samples import TrainingSamples, collate
from facesnap_diffusers.training.training_config import (
    DataConfig,
    DropoutConfig,
    IdentityLossConfig,
    LossConfig,
    ValidationConfig,
)
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
    """
    A recognizer that sees the same face in every photo, with an embedding of unit length or of its own, and with key points
    a few pixels beside those of the landmarks.
    """

    encoder, embedding_dim = tiny.FACE_ENCODER, tiny.FACE_EMBED_DIM

    def __init__(self, normalized: bool):
        embedding = np.random.default_rng(0).normal(size=self.embedding_dim)
        self.embedding = embedding / np.linalg.norm(embedding) * (1 if normalized else 20)

    def analyze(self, image):
        landmarks = tiny.face_points().numpy().astype(float) + [60, 40]
        box = np.concatenate([landmarks.min(0), landmarks.max(0)])
        key_points = five_points(landmarks) + [[5, -4], [-3, 2], [4, 6], [-6, 3], [2, -5]]
        return [Face(image, box, landmarks, self.embedding, 1.0, self.encoder, key_points)]


def adapter_pipeline(family, mixer, condition):
    pipe = tiny.facesnap(tiny.sd_pipeline() if family == "sd" else tiny.xl_pipeline())
    tiny.add_adapter(pipe, **condition)
    if MIXERS[mixer] is not None:
        sizes = {"cross_attention_dim": pipe.mixer.cross_attention_dim, "face_embed_dim": tiny.FACE_EMBED_DIM}
        other = MIXERS[mixer](sizes).eval().requires_grad_(False)
        if isinstance(other, ImagePromptMixer):
            other.set_image_encoder(pipe.face_image_encoder)
        pipe.register_modules(mixer=other)
        changes = {"num_tokens": other.num_tokens, "face_embed_dim": other.face_embed_dim}
        if other.image_embed_dim is None:
            pipe.register_modules(face_image_encoder=None, face_image_processor=None)
            changes["image_encoder_id"] = None
        pipe.register_to_config(facesnap_config=vars(pipe.facesnap_config.replace(**changes)))
    pipe.face_analyzer = OneFace(condition["normalized_embeds"])
    return pipe


@contextmanager
def seen_tokens_and_pictures(pipe):
    """Conditional tokens and landmark pictures that FFRNet is given. It may embed a picture before it is called."""
    seen, pictures = [], []

    def note_picture(embedding, args):
        if args[0].shape[1] == 3:
            pictures.append(args[0])

    def note_tokens(net, args, kwargs, output):
        seen.append((kwargs["encoder_hidden_states"], pictures[-1]))

    handles = [
        pipe.ffrnet.controlnet_cond_embedding.register_forward_pre_hook(note_picture),
        pipe.ffrnet.register_forward_hook(note_tokens, with_kwargs=True),
    ]
    yield seen
    for handle in handles:
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
def test_every_user_of_the_conditioner(family, mixer, condition, tmp_path):
    base = adapter_pipeline(family, mixer, condition)
    conditioner = base.face_conditioner()
    identities = conditioner.identities(PHOTO)
    tokens, unconditional = conditioner.tokens(identities)
    points = conditioner.drawn_points(identities, Steering(), SIZE, SIZE)
    picture = conditioner.landmark_picture(points, SIZE, SIZE)

    for name in PIPELINES[family]:
        pipe = tiny.facesnap(base, getattr(facesnap_diffusers, name))
        arguments = picture_arguments(name)
        if arguments:  # a face stands where the given picture has one, unless the caller says where
            arguments["landmarks"] = points
        seen = seen_by_ffrnet(pipe, face_image=PHOTO, **arguments)
        assert torch.equal(seen[0], tokens) and torch.equal(seen[1], picture), name

    check_training(base, identities[0], points, tokens, unconditional, picture, tmp_path)
    if mixer != "faceid-plus":
        check_export(base, identities[0], tokens, unconditional)
    if family == "xl":
        check_modular(base, tokens, unconditional, picture)


def training_samples(pipe, folder):
    """Samples of shards that hold the same face, as `facesnap prepare` writes it; the whole photo, without augmentation."""
    (face,) = pipe.face_analyzer.analyze(np.array(PHOTO))
    config, encoder = pipe.facesnap_config, pipe.face_image_encoder
    image_size = 32 if encoder is None else encoder.config.image_size
    settings = ShardSettings(
        face.encoder,
        normalized_embeds=config.normalized_embeds,
        image_crop=config.image_crop,
        clip_crop_size=image_size,
        recognition_crop=None,
    )
    info = {"caption": "a cat", "image_format": "png"}
    predictor = load_landmark_predictor()
    with ShardWriter(folder, settings) as writer:
        writer.add(
            make_face(
                face.image, face.landmarks, face.embedding, predictor, settings, key_points=face.key_points, info=info
            ),
            "photo",
        )
    data = DataConfig([str(folder)], resolution=SIZE, zoom=(1.0, 1.0), flip=0, reference_flip=0, reference_jitter=0)
    dropout = DropoutConfig(text=0, identity=0, both=0, landmarks=0)
    latent_shape = (4, SIZE // pipe.vae_scale_factor, SIZE // pipe.vae_scale_factor)
    processor = pipe.face_image_processor
    faces = PreparedFaces([str(folder)])
    return TrainingSamples(faces, data, dropout, predictor, processor, image_size, 1000, latent_shape, extras=())


def as_jpeg(crop):
    """As shards hold crops for the image encoder."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(crop).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def check_training(pipe, identity, points, tokens, unconditional, picture, folder):
    """What the objective makes of a sample of the same face, and what its validation images get."""
    conditioner, samples = pipe.face_conditioner(), training_samples(pipe, folder)
    objective = Objective(
        pipe, ["mixer", "ffrnet", "identity_attention"], LossConfig(), IdentityLossConfig(weight=0.0)
    )
    objective.requires_grad_(False)
    sample = collate([samples[0]])
    assert torch.equal(sample["face_embeds"], identity.face_embeds[None])
    # pixels of a crop have their centers half a pixel from its edge; where a face stands in a new picture is free
    moved = 0.5 * (SIZE / PHOTO.width - 1)
    torch.testing.assert_close(objective.drawn_points(sample), points + moved, atol=1e-4, rtol=0)
    # from here on the very points and crop, which neither their place nor JPEG has changed
    sample["key_points" if conditioner.draws_key_points else "landmarks"] = points
    states = None
    if conditioner.image_encoder is not None:
        crop = conditioner.image_crop(np.array(PHOTO), identity.landmarks.numpy(), identity.key_points.numpy())
        assert samples.faces[0].clip_crop == as_jpeg(crop)
        sample["clip_crop"] = pipe.face_image_processor(crop, return_tensors="pt").pixel_values
        # one crop at a time, as the pipelines encode them: matrix products of other sizes may round otherwise
        states = conditioner.image_states(sample["clip_crop"])
        assert torch.equal(states[0].float(), identity.image_hidden_states)
        states = states.expand(2, -1, -1)
    left_out = torch.tensor([False, True])
    batch = {name: value.expand(2, *value.shape[1:]) for name, value in sample.items() if name != "caption"}
    batch |= {"caption": ["a cat", "a cat"], "without_text": left_out, "without_identity": left_out}
    conditions = objective.encode_conditions(batch)
    torch.testing.assert_close(conditions["identity_tokens"], torch.cat([tokens, unconditional]), atol=1e-5, rtol=0)
    assert torch.equal(conditioner.mix(batch["face_embeds"], states, left_out), torch.cat([tokens, unconditional]))
    pictures, ffrnet = objective.landmark_picture(batch), objective.pipeline.ffrnet
    assert torch.equal(pictures[:1], picture)
    assert torch.equal(conditions["landmark_embeds"], ffrnet.embed_landmarks(pictures.to(ffrnet.dtype)))
    with seen_tokens_and_pictures(objective.pipeline) as seen:
        sample_picture(objective, sample, ValidationConfig(inference_steps=1, guidance_scale=1.0), seed=0)
    assert torch.equal(seen[0][0], tokens) and torch.equal(seen[0][1], picture)


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
