"""What a caller can get wrong: each gives one line that names the argument, and changes nothing."""

import dataclasses
from functools import partial

import numpy as np
import PIL.Image
import pytest
import tiny
import torch

from facesnap_diffusers import (
    AdapterError,
    FaceEncoderMismatchError,
    FaceIdentity,
    FaceSnapConfig,
    FaceSnapError,
    FaceSnapImg2ImgPipeline,
    FaceSnapPipeline,
    FaceSnapXLPipeline,
    HeadPose,
    InputError,
    NoFaceFoundError,
    Person,
    PhotoError,
)


class Blind:
    """Finds no face, at once: what real analyzers find has tests of its own."""

    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def analyze(self, image):
        return []


class OtherRecognizer:
    """An analyzer of another encoder."""

    encoder = "somebody/else"
    embedding_dim = 7

    def analyze(self, image):
        raise AssertionError("an analyzer of the wrong encoder must not run")


@pytest.fixture(scope="module")
def pipe():
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    pipe.set_progress_bar_config(disable=True)
    tiny.add_adapter(pipe)
    pipe.face_analyzer = Blind()
    return pipe


PERSON = tiny.identity()
NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8))
EMBEDDING = torch.ones(tiny.FACE_EMBED_DIM)
POINTS = torch.rand(72, 2) * 64


def text_of_width(width):
    return {name: torch.zeros(1, 77, width) for name in ("prompt_embeds", "negative_prompt_embeds")}


def identity_of(**changes):
    return FaceIdentity(**{"face_embeds": EMBEDDING, "face_encoder_id": tiny.FACE_ENCODER, **changes})


#: arguments of a call beside the prompt, error, what the message says
CALLS = [
    ({"pose": HeadPose()}, InputError, "pose= steers a face"),
    ({"expression": "smile"}, InputError, "expression= steers a face"),
    ({"face_box": (0, 0, 1, 1)}, InputError, "face_box= steers a face"),
    ({"pose_image": NOISE}, InputError, "pose_image= steers a face"),
    ({"landmarks": POINTS}, InputError, "landmarks= steers a face"),
    ({"face_image": NOISE, "identity": PERSON}, InputError, "face_image= and identity="),
    ({"face_image": NOISE}, NoFaceFoundError, r"face_image .*96×96"),
    ({"face_image": [NOISE, NOISE]}, NoFaceFoundError, r"face_image\[0\]"),
    ({"face_image": []}, InputError, "face_image is an empty list"),
    ({"face_image": [[]]}, InputError, "face_image is an empty list"),
    ({"face_image": 7}, PhotoError, "face_image"),
    ({"face_image": "no/such/photo.jpg"}, PhotoError, "face_image"),
    ({"face_image": np.full((64, 64, 3), np.nan)}, PhotoError, "face_image"),
    ({"face_image": torch.zeros(5)}, PhotoError, "face_image"),
    ({"face_image": NOISE, "face_index": "first"}, InputError, "face_index"),
    ({"face_image": NOISE, "face_index": 0.5}, InputError, "face_index"),
    ({"identity": []}, InputError, "identity is an empty list"),
    ({"identity": "someone"}, InputError, "identity must be a FaceIdentity"),
    ({"identity": [PERSON, None]}, InputError, "identity must be a FaceIdentity"),
    ({"identity": EMBEDDING}, InputError, "identity must be a FaceIdentity"),
    ({"identity": identity_of(face_encoder_id="somebody/else")}, FaceEncoderMismatchError, "made by somebody/else"),
    ({"identity": identity_of(face_embeds=torch.ones(9))}, FaceEncoderMismatchError, "embedding of 9 numbers"),
    ({"identity": identity_of()}, FaceEncoderMismatchError, "image features of None"),
    (
        {"identity": identity_of(image_hidden_states=torch.ones(3, 5), image_encoder_id="image_encoder")},
        InputError,
        "image_hidden_states must have shape",
    ),
    ({"identity": PERSON, "pose": 30}, InputError, "pose must be a HeadPose"),
    ({"identity": PERSON, "pose": (30, 0, 0)}, InputError, "pose must be a HeadPose"),
    ({"identity": PERSON, "pose": {"yaw": 30}}, InputError, "pose must be a HeadPose"),
    ({"identity": PERSON, "expression": "smlie"}, InputError, "smlie"),
    ({"identity": PERSON, "expression": {"mouthSmlie": 1}}, InputError, "mouthSmlie"),
    ({"identity": PERSON, "expression": {"jawOpen": 2}}, InputError, "jawOpen"),
    ({"identity": PERSON, "expression": {"jawOpen": float("nan")}}, InputError, "jawOpen"),
    ({"identity": PERSON, "expression": 3}, InputError, "expression"),
    ({"identity": PERSON, "face_box": (0, 0, 1)}, InputError, "face_box must be four numbers"),
    ({"identity": PERSON, "face_box": "middle"}, InputError, "face_box must be four numbers"),
    ({"identity": PERSON, "face_box": (0.5, 0, 0.5, 1)}, InputError, "left < right"),
    ({"identity": PERSON, "face_box": (0, 0.9, 1, 0.1)}, InputError, "top < bottom"),
    ({"identity": PERSON, "face_box": (0, 0, 64, 64)}, InputError, "shares of the image"),
    ({"identity": PERSON, "face_box": (-0.9, 0, 0.1, 1)}, InputError, "outside of the image"),
    ({"identity": PERSON, "face_box": (0, 0, float("nan"), 1)}, InputError, "face_box"),
    ({"identity": PERSON, "face_box": []}, InputError, "face_box must be four numbers"),
    ({"identity": PERSON, "pose_image": NOISE}, NoFaceFoundError, "pose_image"),
    ({"identity": PERSON, "pose_image": "no/such/photo.jpg"}, PhotoError, "pose_image"),
    ({"identity": PERSON, "pose_image": [NOISE, NOISE]}, NoFaceFoundError, r"pose_image\[0\]"),
    ({"identity": PERSON, "landmarks": POINTS, "pose": HeadPose()}, InputError, "landmarks= are used as they are"),
    ({"identity": PERSON, "landmarks": POINTS[:68]}, InputError, "landmarks must have shape"),
    ({"identity": PERSON, "landmarks": POINTS * torch.nan}, InputError, "landmarks has values"),
    ({"identity": PERSON, "landmarks": "here"}, InputError, "landmarks must be a tensor"),
    ({"identity": PERSON, "landmarks": torch.zeros(0, 72, 2)}, InputError, "landmarks must have shape"),
    ({"identity": [PERSON] * 2, "pose": [HeadPose()] * 3}, InputError, "identity has 2 entries, another argument 3"),
    ({"identity": PERSON, "pose": [HeadPose()] * 2, "expression": ["smile"] * 3}, InputError, "pose has 2 entries"),
    ({"identity": [PERSON] * 2, "landmarks": POINTS.expand(3, 72, 2)}, InputError, "identity has 2 entries"),
    ({"identity": [PERSON] * 2, "prompt": ["a"] * 3}, InputError, "identity has 2 entries, another argument 3"),
    ({"face_image": [NOISE] * 2, "prompt": ["a"] * 2}, InputError, "one person or 2"),
    ({"identity": PERSON, "prompt": 5}, InputError, "prompt must be a string"),
    ({"identity": PERSON, "prompt": []}, InputError, "prompt is an empty list"),
    (
        {"identity": PERSON, "prompt": None, "prompt_embeds": 5},
        InputError,
        "prompt_embeds must be a floating point torch.Tensor",
    ),
    ({"identity": PERSON, "prompt": None, **text_of_width(16)}, InputError, "prompt_embeds have width 16"),
    ({"identity": PERSON, "pose": []}, InputError, "pose is an empty list"),
    ({"identity": PERSON, "expression": []}, InputError, "expression is an empty list"),
    ({"identity": PERSON, "pose_image": []}, InputError, "pose_image is an empty list"),
    ({"identity": PERSON, "face_index": 1}, InputError, "face_index= picks a face"),
    ({"face_index": 1}, InputError, "face_index= picks a face"),
    ({"people": [Person(PERSON, (0, 0, 1, 1))], "face_index": 1}, InputError, "face_index= is for one person"),
    ({"people": PERSON}, InputError, "people must be a list of Person"),
    ({"identity": dataclasses.replace(PERSON, shape=torch.ones(3))}, InputError, "identity has 3 shape coefficients"),
    (
        {"identity": [PERSON] * 2, "prompt": None, "prompt_embeds": torch.zeros(1, 77, 32)},
        InputError,
        "prompt_embeds has 1 entry",
    ),
    ({"identity": PERSON, "height": 63}, InputError, "height must be a positive multiple"),
    ({"identity": PERSON, "width": -64}, InputError, "width must be a positive multiple"),
    ({"identity": PERSON, "height": 64.0}, InputError, "height must be a positive multiple"),
    ({"identity": PERSON, "guidance": 5}, InputError, "takes no argument guidance="),
    ({"identity": PERSON, "face_images": NOISE}, InputError, "takes no argument face_images="),
    ({"identity": PERSON, "image": NOISE}, InputError, "image= is for further ControlNets"),
    ({"identity": PERSON, "controlnet_conditioning_scale": 0.5}, InputError, "controlnet_conditioning_scale= is for"),
    ({"num_steps": 3}, InputError, "takes no argument num_steps="),
    ({"identiy": PERSON}, InputError, "takes no argument identiy=; did you mean 'identity'"),
    ({"face_imag": NOISE}, InputError, "did you mean 'face_image'"),
    ({"num_inference_step": 3}, InputError, "did you mean 'num_inference_steps'"),
    ({"zzz": 3}, InputError, "it takes prompt, .*face_image, .*people"),
]


def check(error, message, pipe, call):
    components, config, processors = dict(pipe.components), dict(pipe.config), pipe.unet.attn_processors
    scale, analyzer = pipe.facesnap_scale, pipe.face_analyzer
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value) and isinstance(raised.value, FaceSnapError)
    assert pipe.components == components and dict(pipe.config) == config
    assert pipe.unet.attn_processors == processors
    assert pipe.facesnap_scale == scale and pipe.face_analyzer is analyzer


@pytest.mark.parametrize(
    ("arguments", "error", "message"), CALLS, ids=lambda value: "-".join(value) if isinstance(value, dict) else None
)
def test_calls(pipe, arguments, error, message):
    arguments = {"prompt": "a cat", "height": 64, "width": 64, "num_inference_steps": 1, **arguments}
    check(error, message, pipe, lambda: pipe(**arguments))


#: arguments of encode_face, error, what the message says
ENCODINGS = [
    ({}, PhotoError, "face_image"),
    ({"face_image": NOISE, "landmarks": POINTS}, InputError, "landmarks= without embedding="),
    ({"face_image": [NOISE, NOISE], "embedding": EMBEDDING}, InputError, "go with one photo"),
    ({"face_image": NOISE, "embedding": EMBEDDING}, InputError, "and landmarks= beside embedding="),
    ({"embedding": EMBEDDING}, InputError, "and landmarks= beside embedding="),
    ({"embedding": EMBEDDING[:5], "face_image": NOISE, "landmarks": POINTS}, InputError, "embedding must have shape"),
    ({"embedding": "me", "face_image": NOISE, "landmarks": POINTS}, InputError, "embedding must be a tensor"),
    ({"embedding": 0 * EMBEDDING, "face_image": NOISE, "landmarks": POINTS}, InputError, "all zero"),
    ({"embedding": torch.nan * EMBEDDING, "face_image": NOISE, "landmarks": POINTS}, InputError, "face_embeds"),
    ({"embedding": EMBEDDING, "face_image": NOISE, "landmarks": POINTS[:5]}, InputError, "landmarks must have shape"),
    ({"embedding": EMBEDDING, "face_image": NOISE, "landmarks": POINTS[None].repeat(2, 1, 1)}, InputError, "one face"),
    (
        {"embedding": EMBEDDING, "face_image": NOISE, "landmarks": 0 * POINTS},
        InputError,
        "within two pixels",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), ENCODINGS)
def test_encode_face(pipe, arguments, error, message):
    check(error, message, pipe, lambda: pipe.encode_face(**arguments))


#: arguments of set_facesnap_scale, what the message says
SCALES = [
    ({"identity_scale": -1}, "identity_scale must be a number"),
    ({"identity_scale": "strong"}, "identity_scale must be a number"),
    ({"identity_scale": float("nan")}, "identity_scale must be a number"),
    ({"identity_scale": True}, "identity_scale must be a number"),
    ({"identity_scale": {"mid_block": -1}}, "identity_scale"),
    ({"identity_scale": {"middle": 1}}, "no attention layer begins with 'middle'"),
    ({"identity_scale": {3: 1.0}}, "identity_scale must name layers by strings"),
    ({"identity_scale": [1.0]}, "identity_scale must be a number"),
    ({"landmark_scale": float("inf")}, "landmark_scale must be a number"),
    ({"landmark_scale": {"mid_block": 1}}, "landmark_scale must be a number"),
    ({"identity_scale": 0.5, "landmark_scale": -1}, "landmark_scale must be a number"),
]


@pytest.mark.parametrize(("arguments", "message"), SCALES)
def test_scales(pipe, arguments, message):
    check(InputError, message, pipe, lambda: pipe.set_facesnap_scale(**arguments))


#: arguments of predict_landmarks, what the message says
PREDICTIONS = [
    ({"identity": None}, "identity is None"),
    ({"identity": []}, "identity is an empty list"),
    ({"height": "high"}, "height must be a positive number of pixels"),
    ({"height": 0}, "height must be a positive number of pixels"),
    ({"width": float("nan")}, "width must be a positive number of pixels"),
]


@pytest.mark.parametrize(("arguments", "message"), PREDICTIONS)
def test_predict_landmarks(pipe, arguments, message):
    arguments = {"identity": PERSON, "height": 64, "width": 64, **arguments}
    check(InputError, message, pipe, lambda: pipe.predict_landmarks(**arguments))


#: arguments of load_facesnap_adapter, what the message says
LOADING = [
    ({"pretrained_model_name_or_path": 5}, "pretrained_model_name_or_path must be a str or Path"),
    ({"pretrained_model_name_or_path": {}}, "state dict is not an identity adapter"),
    ({"pretrained_model_name_or_path": ""}, "pretrained_model_name_or_path is empty"),
    ({"parts": "mixer"}, "parts must be a list of names"),
    ({"parts": 5}, "parts must be a list of names"),
    ({"parts": []}, "change no image"),
    ({"parts": [1]}, "unknown parts"),
    ({"dtype": "float16"}, "dtype must be a floating point torch.dtype"),
    ({"dtype": torch.int32}, "dtype must be a floating point torch.dtype"),
    ({"subfolder": 3}, "subfolder must be a str"),
    ({"subfolder": "nowhere"}, "no facesnap_config.json"),
    ({"variant": 16}, "variant must be a str"),
    ({"variant": "fp32"}, "mixer could not be loaded"),
    ({"weight_name": "nothing.bin"}, "check weight_name"),
    ({"image_encoder": 5}, "image_encoder must be a CLIPVisionModelWithProjection"),
]


@pytest.mark.parametrize(("arguments", "message"), LOADING)
def test_load(pipe, arguments, message, tmp_path):
    pipe.save_facesnap_adapter(tmp_path)
    arguments = {"pretrained_model_name_or_path": tmp_path, **arguments}
    check(FaceSnapError, message, pipe, lambda: pipe.load_facesnap_adapter(**arguments))


def test_save(pipe, tmp_path, hub):
    (tmp_path / "file").write_text("")
    nowhere = tmp_path / "file" / "folder"
    for arguments, error, message in [
        ({"save_directory": 5}, InputError, "save_directory must be a str or Path"),
        ({"save_directory": tmp_path / "file"}, InputError, "save_directory .* cannot be made"),
        ({"save_directory": nowhere}, InputError, "save_directory .* cannot be made"),
        ({"variant": 16}, InputError, "variant must be a str"),
        ({"repo_id": 5}, InputError, "repo_id must be a str"),
        ({"push_to_hub": True, "repo_id": "no such/name"}, AdapterError, "check repo_id"),
    ]:
        arguments = {"save_directory": tmp_path / "adapter", **arguments}
        check(error, message, pipe, partial(pipe.save_facesnap_adapter, **arguments))


def test_no_face_analyzer(pipe):
    pipe.face_analyzer, own = 5, pipe.face_analyzer
    check(InputError, "face_analyzer must be a FaceAnalyzer", pipe, lambda: pipe.encode_face(NOISE))
    pipe.face_analyzer = own


def test_another_recognizer(pipe):
    pipe.face_analyzer, own = OtherRecognizer(), pipe.face_analyzer
    try:
        for call in (
            lambda: pipe("a cat", face_image=NOISE),
            lambda: pipe.encode_face(NOISE),
            lambda: pipe("a cat", identity=PERSON, pose_image=NOISE),
        ):
            check(FaceEncoderMismatchError, "face_analyzer makes embeddings of somebody/else", pipe, call)
    finally:
        pipe.face_analyzer = own


def test_without_an_adapter():
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    for call in (
        lambda: pipe("a cat", face_image=NOISE),
        lambda: pipe("a cat", identity=PERSON),
        lambda: pipe.encode_face(NOISE),
        lambda: pipe.predict_landmarks(PERSON, height=64, width=64),
        lambda: pipe.save_facesnap_adapter("nowhere"),
        lambda: pipe.set_facesnap_scale(identity_scale={"mid_block": 1.0}),
    ):
        check(AdapterError, "load_facesnap_adapter", pipe, call)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parts": ["mixer"]}, "change no image"),
        ({"parts": ["motor"]}, "unknown parts"),
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"num_tokens": 10**9}, "num_tokens is 1000000000"),
        ({"num_tokens": "4"}, "num_tokens is '4'"),
        ({"num_tokens": True}, "num_tokens is True"),
        ({"face_embed_dim": 10**9}, "face_embed_dim is 1000000000"),
        ({"image_crop": "nose"}, "image_crop is 'nose'"),
        ({"landmark_style": 5}, "landmark_style is 5"),
    ],
)
def test_configs(values, message):
    with pytest.raises(AdapterError, match=message):
        FaceSnapConfig(**values)


#: arguments of init_facesnap_adapter, what the message says
FRESH = [
    ({"config": {"num_tokens": 4}}, "config must be a FaceSnapConfig"),
    ({"config": FaceSnapConfig(image_encoder_id="image_encoder")}, "image encoder"),
    ({"config": FaceSnapConfig(image_encoder_id="nobody/nothing")}, "image encoder 'nobody/nothing'"),
    ({"config": FaceSnapConfig(image_encoder_id=None, base_family="sdxl")}, "base_family"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"size": 3}}, "mixer"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"hidden_size": 20}}, "hidden_size"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"num_tokens": 3}}, "mixer gives 3 tokens"),
    (
        {"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"num_layers": 0}},
        "num_layers must be an integer ≥ 1",
    ),
    ({"config": FaceSnapConfig(image_encoder_id=None), "mixer": "large"}, "mixer"),
    ({"config": FaceSnapConfig(image_encoder_id="image_encoder"), "image_encoder": 5}, "image_encoder must be"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "image_encoder": "clip"}, "image_encoder must be"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "image_processor": "clip"}, "image_processor must be"),
    ({"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"face_embed_dim": -3}}, "face_embed_dim must be"),
    (
        {"config": FaceSnapConfig(image_encoder_id=None), "mixer": {"cross_attention_dim": 0}},
        "cross_attention_dim must",
    ),
    ({"config": FaceSnapConfig(image_encoder_id=None, face_embed_dim=None)}, "both None"),
]


@pytest.mark.parametrize(("arguments", "message"), FRESH)
def test_init(arguments, message, hub):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    check(FaceSnapError, message, pipe, lambda: pipe.init_facesnap_adapter(**arguments))


def test_init_on_weights_that_are_not_there():
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    pipe.unet.to("meta")
    config = FaceSnapConfig(image_encoder_id=None)
    check(AdapterError, "before offloading", pipe, lambda: pipe.init_facesnap_adapter(config))


#: attributes of a FaceIdentity, what the message says
IDENTITIES = [
    ({"face_embeds": [1.0, 2.0]}, "face_embeds must be a floating point"),
    ({"face_embeds": torch.ones(4, dtype=torch.long)}, "face_embeds must be a floating point"),
    ({"face_embeds": torch.zeros(4)}, "not be all zero"),
    ({"photo_embeds": torch.stack([EMBEDDING, 0 * EMBEDDING])}, "photo_embeds has a photo .* all zero"),
    ({"image_hidden_states": torch.zeros(5, 3)}, "image_hidden_states .* not be all zero"),
    ({"face_embeds": torch.ones(2, 2)}, "face_embeds must have shape"),
    ({"face_embeds": torch.tensor([1.0, torch.inf])}, "face_embeds has values that are not finite"),
    ({"landmarks": torch.ones(5, 2)}, "landmarks must have shape"),
    ({"landmarks": torch.full((68, 2), torch.nan)}, "landmarks has values"),
    ({"landmarks": torch.ones(68, 2)}, "landmarks lie all on one line"),
    ({"shape": torch.ones(3, 3)}, "shape must have shape"),
    ({"image_hidden_states": torch.ones(3)}, "image_hidden_states must have shape"),
    ({"photo_size": "large"}, "photo_size must be height and width"),
    ({"photo_size": (0, 100)}, "photo_size must be height and width"),
    ({"face_encoder_id": None}, "face_encoder_id must be a str"),
    ({"image_encoder_id": 7}, "image_encoder_id must be a str"),
]


@pytest.mark.parametrize(("values", "message"), IDENTITIES)
def test_identities(values, message):
    with pytest.raises(InputError, match=message):
        identity_of(**values)


def test_identity_files(tmp_path):
    for content, message in [
        (None, "is not a file"),
        (b"", "not a readable safetensors"),
        (b"\xff" * 100, "not a readable safetensors"),
    ]:
        path = tmp_path / "identity.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            FaceIdentity.load(path)
    from safetensors.torch import save_file

    save_file({"face_embeds": EMBEDDING}, path)
    with pytest.raises(InputError, match="does not hold a FaceSnap identity"):
        FaceIdentity.load(path)
    with pytest.raises(FaceEncoderMismatchError, match="different encoders"):
        FaceIdentity.fuse([PERSON, identity_of(face_encoder_id="somebody/else")])
    for arguments, message in [
        ([], "identities is empty"),
        ([PERSON, 5], "identities must be FaceIdentity"),
        ([PERSON, identity_of(face_embeds=torch.ones(9), image_encoder_id="image_encoder")], "of 128 and 9 numbers"),
        (
            [PERSON, dataclasses.replace(PERSON, image_hidden_states=torch.ones(5, 25))],
            "image_hidden_states of 24 and 25 numbers",
        ),
        (
            [PERSON, dataclasses.replace(PERSON, image_hidden_states=None)],
            "image_hidden_states .* for some of the identities only",
        ),
        ([dataclasses.replace(PERSON, shape=torch.ones(n)) for n in (64, 10)], "shape of 64 and 10 numbers"),
    ]:
        with pytest.raises(InputError, match=message):
            FaceIdentity.fuse(arguments)
    for path, message in [(5, "path must be a str or Path"), (tmp_path / "no" / "folder", "cannot be written")]:
        with pytest.raises(InputError, match=message):
            PERSON.save(path)
    with pytest.raises(InputError, match="path must be a str or Path"):
        FaceIdentity.load(5)


def test_from_pipe_of_another_family():
    with pytest.raises(InputError, match="FaceSnapXLPipeline takes Stable Diffusion XL"):
        FaceSnapXLPipeline.from_pipe(tiny.sd_pipeline())
    with pytest.raises(InputError, match=r"unknown \['lora'\]"):
        FaceSnapImg2ImgPipeline.from_pipe(tiny.sd_pipeline(), lora=1)
    with pytest.raises(InputError, match="pipeline must be a DiffusionPipeline"):
        FaceSnapPipeline.from_pipe(None)
    with pytest.raises(InputError, match="dtype must be a torch.dtype"):
        FaceSnapPipeline.from_pipe(tiny.sd_pipeline(), dtype="half")
