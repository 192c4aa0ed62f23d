"""Whatever is given for an argument: a typed error in one line, or finite images."""

import math

import numpy as np
import PIL.Image
import pytest
import third_party
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from input_counts import counts, report

from facesnap_diffusers import (
    Expression,
    FaceIdentity,
    FaceSnapConfig,
    FaceSnapError,
    FaceSnapInpaintPipeline,
    HeadPose,
    Person,
)


AMOUNTS = counts(few=25, many=250)


class Nobody:
    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def analyze(self, image):
        return []


small_numbers = st.sampled_from([-3, -1, 0, 1, 2, True, False, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf])
numbers = st.one_of(small_numbers, st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 1e300, 3 + 4j]))
arrays = st.builds(
    lambda shape, dtype, value: np.full(shape, value).astype(dtype),
    st.lists(st.integers(0, 4), max_size=5).map(tuple)
    | st.sampled_from([(68, 2), (72, 2), (72, 3), (1, 72, 2), (20, 20, 3), (32, 20), (128,), (1, 4, 8, 8), (4,)]),
    st.sampled_from(["float32", "float64", "int64", "uint8", "bool", "complex64", "float16"]),
    st.sampled_from([0, 1, 0.5, -1, 200, 1e20]),
)
tensors = st.one_of(
    arrays.map(torch.from_numpy),
    st.sampled_from(
        [
            torch.full((72, 2), math.nan),
            torch.ones(72, 2, device="meta"),
            torch.eye(3).to_sparse(),
            torch.ones(3).to(torch.float8_e4m3fn),
            torch.randn(1, 4, 8, 8),
            torch.rand(72, 2) * 16,
        ]
    ),
)
pictures = st.sampled_from(
    [
        PIL.Image.new(mode, size)
        for mode in ("RGB", "L", "RGBA", "1", "I;16", "F")
        for size in ((1, 1), (16, 16), (40, 20))
    ]
)
texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "smile", "a\0b", "x" * 5000, "/", "~", "~nobody/x", "http://", "http://[::1", "data:,", "."]),
    st.binary(max_size=20),
)
people = st.sampled_from([tiny.identity(), tiny.identity(landmarks=False), tiny.identity(image_features=False)])
steering = st.one_of(
    st.sampled_from([HeadPose(10, 0, 0), HeadPose(), Expression({"jawOpen": 0.5}), Expression({})]),
    st.tuples(*[st.sampled_from([0, 0.2, 0.5, 0.9, 1.2])] * 4),
    st.dictionaries(st.sampled_from(["jawOpen", "mouthSmile_L", "nothing", 7]), numbers, max_size=2),
)
leaves = st.one_of(st.none(), numbers, texts, arrays, tensors, pictures, people, steering, st.builds(object))
anything = st.one_of(
    leaves,
    st.lists(leaves, max_size=3),
    st.lists(st.lists(leaves, max_size=2), max_size=2),
    st.tuples(leaves, leaves),
    st.dictionaries(st.text(max_size=3), leaves, max_size=2),
    st.lists(st.builds(Person, leaves, leaves), max_size=2),
)
#: For counts and sizes: numbers of which nothing large is made.
modest = st.one_of(
    small_numbers, texts, st.none(), pictures, st.lists(small_numbers, max_size=2), st.just(np.int64(16))
)


def check(count, strategy, call):
    """Runs `call` on values of a strategy: what it returns must be finite, what it raises typed and of one line."""
    outcomes = {"typed": 0, "finite": 0}

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(value):
        try:
            result = call(value)
        except FaceSnapError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, error
            outcomes["typed"] += 1
        else:
            outcomes["finite"] += 1
            for tensor in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    assert torch.isfinite(tensor).all()

    run()
    report("public arguments of pipelines", outcomes["typed"], outcomes["finite"])
    assert outcomes["typed"]


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.face_analyzer = Nobody()
    return pipe


@pytest.fixture(scope="module")
def with_ip_adapter():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.register_modules(image_encoder=tiny.image_encoder())
    weights = third_party.ip_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


@pytest.fixture(scope="module")
def inpaint():
    pipe = tiny.facesnap(tiny.sd_pipeline(), FaceSnapInpaintPipeline)
    tiny.add_adapter(pipe)
    pipe.face_analyzer = Nobody()
    return pipe


CALL = {"height": 16, "width": 16, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}

FACE = ("face_image", "identity", "face_index", "pose_image", "pose", "expression", "face_box", "landmarks", "people")


@AMOUNTS
@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["alone", "with a person"])
def test_arguments_for_the_face(pipe, who, count):
    values = st.dictionaries(st.sampled_from(FACE), anything, min_size=1, max_size=2)
    check(count, values, lambda value: pipe("a", **{**CALL, **who, **value}).images)


@AMOUNTS
@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
def test_numbers_of_a_call(pipe, who, count):
    names = ("height", "width", "num_inference_steps", "num_images_per_prompt", "guidance_scale", "eta", "clip_skip")
    values = st.dictionaries(st.sampled_from(names), modest, min_size=1, max_size=2)

    def call(value):
        value = {name: number for name, number in value.items() if number is not None}
        return pipe("a", **{**CALL, "height": 8, "width": 8, **who, **value}).images

    check(count, values, call)


@AMOUNTS
def test_tensors_and_texts_of_a_call(pipe, count):
    names = (
        "prompt",
        "negative_prompt",
        "latents",
        "prompt_embeds",
        "generator",
        "negative_prompt_embeds",
        "controlnet_conditioning_scale",
        "image",
        "cross_attention_kwargs",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
        "timesteps",
        "sigmas",
        "guidance_rescale",
        "output_type",
        "ip_adapter_image_embeds",
    )
    values = st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=1)
    check(count, values, lambda value: pipe(**{"prompt": "a", "identity": tiny.identity(), **CALL, **value}).images)


@AMOUNTS
@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
def test_arguments_for_a_stock_ip_adapter(with_ip_adapter, who, count):
    embeds = st.lists(tensors, max_size=2) | st.just([torch.ones(1, 1, 16)]) | anything
    masks = st.lists(tensors, max_size=2) | st.just([torch.ones(1, 1, 16, 16)]) | anything
    values = st.one_of(
        embeds.map(lambda value: {"ip_adapter_image_embeds": value}),
        masks.map(lambda value: {"cross_attention_kwargs": {"ip_adapter_masks": value}}),
    )
    call = {**CALL, **who, "ip_adapter_image_embeds": [torch.ones(1, 1, 16)]}
    check(count, values, lambda value: with_ip_adapter("a", **{**call, **value}).images)


@AMOUNTS
def test_pictures_and_masks(inpaint, count):
    names = ("image", "mask_image", "strength", "padding_mask_crop")
    values = st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=2)
    picture = {"image": PIL.Image.new("RGB", (16, 16)), "mask_image": PIL.Image.new("L", (16, 16), 255)}
    call = {**CALL, "strength": 1.0, "identity": tiny.identity(), **picture}

    def run(value):
        if "padding_mask_crop" in value:
            value = {**value, "output_type": "pil"}
        return inpaint("a", **{**call, **value}).images

    check(count, values, run)


@AMOUNTS
def test_landmarks_and_identities(pipe, count):
    names = ("identity", "height", "width", "pose_image", "pose", "expression", "face_box", "face_index")
    values = st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=2)
    size = {"identity": tiny.identity(), "height": 16, "width": 16}
    check(count, values, lambda value: pipe.predict_landmarks(**{**size, **value}))

    names = ("face_image", "face_index", "embedding", "landmarks")
    values = st.dictionaries(st.sampled_from(names), anything, max_size=1)
    known = {
        "face_image": PIL.Image.new("RGB", (120, 100)),
        "embedding": torch.ones(tiny.FACE_EMBED_DIM),
        "landmarks": tiny.face_points(),
    }
    check(count, values, lambda value: pipe.encode_face(**{**known, **value}).face_embeds)


@AMOUNTS
def test_identities_and_configs_from_anything(count):
    names = (
        "face_embeds",
        "landmarks",
        "shape",
        "photo_size",
        "image_hidden_states",
        "image_encoder_id",
        "photo_embeds",
    )
    values = st.dictionaries(st.sampled_from(names), anything, min_size=1, max_size=2)
    person = {"face_embeds": torch.ones(128), "face_encoder_id": tiny.FACE_ENCODER}
    check(count, values, lambda value: FaceIdentity(**{**person, **value}).face_embeds)
    check(count, anything, lambda value: FaceIdentity(torch.ones(4), value).face_embeds)
    check(count, st.lists(anything, max_size=2) | anything, lambda value: FaceIdentity.fuse(value).face_embeds)

    fields = list(FaceSnapConfig.__dataclass_fields__)
    values = st.dictionaries(st.sampled_from(fields), anything, min_size=1, max_size=2)
    check(count, values, lambda value: FaceSnapConfig(**value) and None)
    check(count, anything, lambda value: FaceSnapConfig.from_dict(value) and None)


@AMOUNTS
def test_scales_and_names_of_adapters(pipe, count, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # a Hub that is closed is asked six times
    values = st.fixed_dictionaries({}, optional={"identity_scale": anything, "landmark_scale": anything})
    check(count, values, lambda value: pipe.set_facesnap_scale(**value))
    pipe.set_facesnap_scale(identity_scale=1.0, landmark_scale=1.0)

    pipe.save_facesnap_adapter(tmp_path)
    names = ("weight_name", "parts", "subfolder", "variant", "revision", "dtype", "image_encoder")
    values = st.dictionaries(st.sampled_from(names), anything, max_size=1)
    other = tiny.facesnap(tiny_base())
    check(count, values, lambda value: other.load_facesnap_adapter(tmp_path, **value))
    check(count, texts | anything, lambda name: pipe.load_facesnap_adapter(name, local_files_only=True))
    check(count, anything, lambda value: tiny.facesnap(tiny_base(), None).from_pipe(value) and None)
    check(count, anything, lambda value: pipe.init_facesnap_adapter(value, image_encoder=value) and None)


_BASE = []


def tiny_base():
    if not _BASE:
        _BASE.append(tiny.sd_pipeline())
    return _BASE[0]
