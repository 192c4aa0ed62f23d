"""Pipelines that begin with a picture: where the face goes, every format, the mask."""

import numpy as np
import PIL.Image
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)

from facesnap_diffusers import (
    Face,
    FaceSnapImg2ImgPipeline,
    FaceSnapInpaintPipeline,
    FaceSnapPipeline,
    FaceSnapXLImg2ImgPipeline,
    FaceSnapXLInpaintPipeline,
    HeadPose,
    InputError,
    MissingDependencyError,
)


CALL = {"num_inference_steps": 2, "output_type": "pt", "strength": 1.0}


class Finder:
    """Finds faces of the mean shape in the boxes that it is given, as shares of the picture."""

    encoder = tiny.FACE_ENCODER
    embedding_dim = tiny.FACE_EMBED_DIM

    def __init__(self, *boxes):
        self.boxes = boxes

    def analyze(self, image):
        height, width = image.shape[:2]
        points = tiny.face_points().numpy()
        low, high = points.min(0), points.max(0)
        faces = []
        for left, top, right, bottom in self.boxes:
            box = np.array([left * width, top * height, right * width, bottom * height])
            inside = (points - low) / (high - low) * (box[2:] - box[:2]) + box[:2]
            faces.append(Face(image, box, inside, np.ones(tiny.FACE_EMBED_DIM) / 11, 1.0, self.encoder))
        return faces


class Missing(Finder):
    def analyze(self, image):
        raise MissingDependencyError("insightface is not installed")


def noise(width=64, height=64, seed=0):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def mask(box, size=64):
    left, top, right, bottom = (round(value * size) for value in box)
    image = PIL.Image.new("L", (size, size), 0)
    image.paste(255, (left, top, right, bottom))
    return image


def make(cls, base=None, finder=None):
    pipe = tiny.facesnap(base or (tiny.xl_pipeline() if "XL" in cls.__name__ else tiny.sd_pipeline()), cls)
    tiny.add_adapter(pipe)
    pipe.face_analyzer = finder or Finder()
    return pipe


@pytest.fixture(scope="module")
def inpaint():
    return make(FaceSnapInpaintPipeline)


class TestWhereTheFaceGoes:
    UPPER_RIGHT, LOWER_LEFT = (0.6, 0.1, 0.9, 0.45), (0.05, 0.6, 0.3, 0.9)

    @pytest.mark.parametrize("face", [UPPER_RIGHT, LOWER_LEFT])
    def test_the_face_that_the_mask_touches(self, inpaint, face):
        inpaint.face_analyzer = Finder(self.UPPER_RIGHT, self.LOWER_LEFT)
        points = inpaint.predict_landmarks(tiny.identity(), height=64, width=64, image=noise(), mask_image=mask(face))[
            0
        ]
        low, high = points.amin(0) / 64, points.amax(0) / 64
        np.testing.assert_allclose([*low, *high], face, atol=0.06)

    def test_a_call_steers_by_it(self, inpaint, monkeypatch):
        inpaint.face_analyzer = Finder(self.UPPER_RIGHT, self.LOWER_LEFT)
        pictures = []
        draw = type(inpaint.face_conditioner()).landmark_picture
        monkeypatch.setattr(
            "facesnap_diffusers.conditioner.FaceConditioner.landmark_picture",
            lambda self, points, *size: pictures.append(points) or draw(self, points, *size),
        )
        arguments = {"image": noise(), "mask_image": mask(self.LOWER_LEFT)}
        inpaint("a cat", identity=tiny.identity(), **arguments, **CALL)
        expected = inpaint.predict_landmarks(tiny.identity(), height=64, width=64, **arguments)
        torch.testing.assert_close(pictures[0], expected)
        assert (expected[0, :, 0] < 32).all() and (expected[0, :, 1] > 32).all()

    @pytest.mark.parametrize("finder", [Finder(), Finder(LOWER_LEFT), Missing()], ids=["none", "elsewhere", "missing"])
    def test_else_the_box_of_the_mask(self, inpaint, finder):
        inpaint.face_analyzer = finder
        points = inpaint.predict_landmarks(
            tiny.identity(), height=64, width=64, image=noise(), mask_image=mask(self.UPPER_RIGHT)
        )
        expected = inpaint.predict_landmarks(
            tiny.identity(), height=64, width=64, face_box=(38 / 64, 6 / 64, 58 / 64, 29 / 64)
        )
        torch.testing.assert_close(points, expected)

    def test_what_is_asked_for_comes_first(self, inpaint):
        inpaint.face_analyzer = Finder(self.UPPER_RIGHT)
        size = {"height": 64, "width": 64}
        picture = {"image": noise(), "mask_image": mask(self.UPPER_RIGHT)}
        by_box = inpaint.predict_landmarks(tiny.identity(), face_box=self.LOWER_LEFT, **picture, **size)
        assert (by_box[0, :, 0] < 32).all()
        by_picture = inpaint.predict_landmarks(tiny.identity(), **picture, **size)
        turned = inpaint.predict_landmarks(tiny.identity(), pose=HeadPose(yaw=40), **picture, **size)
        assert (turned - by_picture).abs().max() > 1 and (turned.mean(1) - by_picture.mean(1)).abs().max() < 5

    @pytest.mark.parametrize("value", [0, 255])
    def test_without_face_and_mask_as_in_the_reference(self, inpaint, value):
        inpaint.face_analyzer = Finder()
        size = {"height": 64, "width": 64}
        points = inpaint.predict_landmarks(
            tiny.identity(), image=noise(), mask_image=PIL.Image.new("L", (64, 64), value), **size
        )
        torch.testing.assert_close(points, inpaint.predict_landmarks(tiny.identity(), **size))

    def test_image_to_image_takes_the_largest_face(self):
        pipe = make(FaceSnapImg2ImgPipeline, finder=Finder(self.LOWER_LEFT, (0.3, 0.1, 0.9, 0.7)))
        points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, image=noise())[0] / 64
        np.testing.assert_allclose([*points.amin(0), *points.amax(0)], (0.3, 0.1, 0.9, 0.7), atol=0.1)

    def test_text_to_image_has_no_picture(self):
        pipe = make(FaceSnapPipeline)
        with pytest.raises(InputError, match="image= is for pipelines that begin with a picture"):
            pipe.predict_landmarks(tiny.identity(), height=64, width=64, image=noise())


WIDTH, HEIGHT = 48, 64
PICTURE = noise(WIDTH, HEIGHT)
PIXELS = np.asarray(PICTURE).astype(np.float32) / 255
TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)

FORMATS = {
    "PIL": PICTURE,
    "list of PIL": [PICTURE],
    "array HWC": PIXELS,
    "array NHWC": PIXELS[None],
    "list of arrays": [PIXELS],
    "tensor CHW": TENSOR,
    "tensor NCHW": TENSOR[None],
    "list of tensors": [TENSOR],
}


@pytest.mark.parametrize(
    ("cls", "stock_cls"),
    [
        (FaceSnapImg2ImgPipeline, StableDiffusionImg2ImgPipeline),
        (FaceSnapXLImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline),
        (FaceSnapInpaintPipeline, StableDiffusionInpaintPipeline),
        (FaceSnapXLInpaintPipeline, StableDiffusionXLInpaintPipeline),
    ],
)
def test_every_format_of_a_picture(cls, stock_cls, tmp_path):
    base = tiny.xl_pipeline() if "XL" in cls.__name__ else tiny.sd_pipeline()
    pipe = make(cls, base)
    more = {"num_inference_steps": 1, "strength": 1.0, "output_type": "pt", "guidance_scale": 1.0}
    if "Inpaint" in cls.__name__:
        more["mask_image"] = PIL.Image.new("L", (WIDTH, HEIGHT), 255)
    PICTURE.save(tmp_path / "picture.png")
    latents = torch.randn(1, 4, HEIGHT // 2, WIDTH // 2)

    expected = None
    file = tmp_path / "picture.png"
    formats = {**FORMATS, "path": file, "text": str(file), "bytes": file.read_bytes(), "file": file.open("rb")}
    for name, picture in formats.items():
        image = pipe("a cat", identity=tiny.identity(), image=picture, generator=tiny.seeded(), **more).images
        expected = image if expected is None else expected
        assert image.shape == (1, 3, HEIGHT, WIDTH), name
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=0)
    if "Inpaint" not in cls.__name__:
        image = pipe("a cat", identity=tiny.identity(), image=latents, **more).images
        assert image.shape == (1, 3, HEIGHT, WIDTH)

    stock = tiny._quiet(stock_cls.from_pipe(base))
    size = {"height": HEIGHT, "width": WIDTH} if "Inpaint" in cls.__name__ else {}
    plain = pipe("a cat", image=TENSOR, generator=tiny.seeded(), **more, **size).images
    assert torch.equal(plain, stock("a cat", image=TENSOR, generator=tiny.seeded(), **more, **size).images)


class TestSize:
    @pytest.fixture(scope="class")
    def pipe(self):
        return make(FaceSnapPipeline)

    def test_numbers_of_numpy(self, pipe):
        image = pipe("a cat", identity=tiny.identity(), height=np.int64(48), width=np.uint8(32), num_inference_steps=1)
        assert image.images[0].size == (32, 48)

    def test_latents_say_the_size(self, pipe):
        latents = torch.randn(1, 4, 24, 16)
        image = pipe("a cat", identity=tiny.identity(), latents=latents, num_inference_steps=1).images[0]
        assert image.size == (32, 48)
        with pytest.raises(InputError, match="make them agree"):
            pipe("a cat", identity=tiny.identity(), latents=latents, height=64, width=64)


class TestPaddingMaskCrop:
    FACE = (0.625, 0.125, 0.875, 0.375)
    CALL = {"padding_mask_crop": 8, "num_inference_steps": 2, "height": 64, "width": 64}

    def test_without_a_face_it_is_the_stock_pipeline(self):
        base = tiny.sd_pipeline()
        pipe = tiny.facesnap(base, FaceSnapInpaintPipeline)
        stock = tiny._quiet(StableDiffusionInpaintPipeline.from_pipe(base))
        arguments = {"image": noise(), "mask_image": mask(self.FACE), **self.CALL}
        images = [p("a cat", generator=tiny.seeded(), **arguments).images[0] for p in (pipe, stock)]
        assert np.array_equal(*map(np.asarray, images))

    def test_control_images_follow_the_crop(self):
        base = tiny.sd_pipeline()
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(16, 32)).eval()
        for parameter in net.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        pipe = tiny._quiet(FaceSnapInpaintPipeline.from_pipe(base, controlnet=net))
        stock = tiny._quiet(StableDiffusionControlNetInpaintPipeline.from_pipe(base, controlnet=net))
        arguments = {"image": noise(), "mask_image": mask(self.FACE), "control_image": noise(seed=1), **self.CALL}
        images = [p("a cat", generator=tiny.seeded(), **arguments).images[0] for p in (pipe, stock)]
        assert np.array_equal(*map(np.asarray, images))

    def test_landmarks_follow_the_crop(self, inpaint, monkeypatch):
        inpaint.face_analyzer = Finder(self.FACE)
        drawn = []
        draw = type(inpaint.face_conditioner()).landmark_picture
        monkeypatch.setattr(
            "facesnap_diffusers.conditioner.FaceConditioner.landmark_picture",
            lambda self, points, *size: drawn.append((points, size)) or draw(self, points, *size),
        )
        picture = noise()
        result = inpaint(
            "a cat",
            identity=tiny.identity(),
            image=picture,
            mask_image=mask(self.FACE),
            generator=tiny.seeded(),
            **self.CALL,
        ).images[0]
        points, size = drawn[0]
        assert size == (64, 64)
        # the mask is 16 px wide, with 8 px around: the crop of 32 px fills the image, and the mask its middle half
        np.testing.assert_allclose([*points[0].amin(0), *points[0].amax(0)], (16, 16, 48, 48), atol=4)
        changed = (np.asarray(result) != np.asarray(picture)).any(-1)
        inside = np.asarray(mask(self.FACE)) > 0
        assert changed[inside].mean() > 0.9 and not changed[~inside].any()

    def test_needs_pil_images(self, inpaint):
        with pytest.raises(InputError, match="padding_mask_crop needs image= and mask_image= as PIL"):
            inpaint("a cat", identity=tiny.identity(), image=TENSOR, mask_image=mask(self.FACE), **self.CALL)


@pytest.mark.parametrize("face", [True, False])
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_a_mask_counts_on_latents_of_any_channels(face, guidance_scale):
    """As on 4 channels: what the mask leaves out is the picture, as far as the autoencoder gives it back."""
    base = tiny.sd_pipeline()
    torch.manual_seed(0)
    base.unet = tiny.sd_unet(in_channels=6, out_channels=6).eval()
    vae = tiny.vae()
    base.vae = type(vae).from_config({**vae.config, "latent_channels": 6}).eval()
    pipe = make(FaceSnapInpaintPipeline, base)
    who = {"identity": tiny.identity()} if face else {}
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(tensors["latents"].shape)
        return tensors

    def run(value):
        picture_mask = PIL.Image.new("L", (64, 64), value)
        return pipe(
            "a cat",
            image=noise(),
            mask_image=picture_mask,
            generator=tiny.seeded(),
            callback_on_step_end=callback,
            **{**CALL, "guidance_scale": guidance_scale, "output_type": "latent"},
            **who,
        ).images

    pixels = pipe.image_processor.preprocess(noise())
    kept, free = run(0), run(255)
    latents = pipe.vae.config.scaling_factor * pipe.vae.encode(pixels).latent_dist.mean
    assert (kept - latents).abs().max() < (free - latents).abs().max() / 3
    assert steps == [(1, 6, 32, 32)] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "needs image="),
        ({"mask_image": None}, "needs mask_image="),
        ({"image": "nowhere.png"}, "image: 'nowhere.png' does not exist"),
        ({"image": []}, "image is an empty list"),
        ({"image": 5}, "image must be a PIL image"),
        ({"image": torch.zeros(3)}, "image has shape"),
        ({"strength": 0.1, "num_inference_steps": 4}, "leaves none"),
        ({"strength": 1.2}, "strength must be a number from 0 to 1"),
        ({"padding_mask_crop": -1}, "padding_mask_crop must be"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number"),
    ],
)
def test_wrong_arguments(inpaint, arguments, message):
    call = {"image": noise(), "mask_image": mask((0.2, 0.2, 0.8, 0.8)), "num_inference_steps": 1, **arguments}
    for who in ({}, {"identity": tiny.identity()}):
        if "padding_mask_crop" in arguments and not who:
            continue  # the stock pipeline's own
        with pytest.raises(InputError, match=message):
            inpaint("a cat", **call, **who)
