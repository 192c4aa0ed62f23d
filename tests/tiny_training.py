"""A tiny base model, prepared faces and a config: all that a training run needs, made in a second."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import tiny
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import DDIMScheduler
from torch import nn
from transformers import CLIPImageProcessor

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import PreparedFace
from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import ShardWriter
from facesnap_diffusers.faces.key_points import five_points
from facesnap_diffusers.settings import parse_settings
from facesnap_diffusers.training.losses import NoiseSchedule
from facesnap_diffusers.training.recognizer import FaceRecognizer
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import TrainingConfig


SIZE = 32
CROP_SIZE = 32


class TinyRecognizer(nn.Module):
    """A small network with fixed random weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv = nn.Conv2d(3, 16, 5, stride=4)
        self.linear = nn.Linear(16 * 4 * 4, tiny.FACE_EMBED_DIM)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, crops):
        features = torch.tanh(self.conv(crops))
        return self.linear(nn.functional.adaptive_avg_pool2d(features, 4).flatten(1))


def write_base(folder: Path, prediction_type: str = "epsilon") -> None:
    pipe = tiny.sd_pipeline()
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    pipe.save_pretrained(folder)
    tiny.image_encoder().save_pretrained(folder / "face_encoder")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "face_encoder"
    )


@torch.no_grad()
def write_faces(folder: Path, people: int = 4, photos: int = 3, key_points: bool = False, **settings) -> None:
    """
    People are colors, their photos differ in pose and background; the embedding is the tiny recognizer's. `settings` are of
    the shards; the crop for the image encoder is the whole picture whatever they say. With `key_points` the photos have some,
    a pixel beside those of the landmarks.
    """
    if settings.get("recognition_crop", "arcface") is not None:
        settings = {"recognition_crop_size": CROP_SIZE, **settings}
    settings = ShardSettings(**{"face_encoder_id": tiny.FACE_ENCODER, "clip_crop_size": SIZE, **settings})
    predictor, recognizer = load_landmark_predictor(), FaceRecognizer(TinyRecognizer(), size=CROP_SIZE)
    with ShardWriter(folder, settings) as writer:
        for person in range(people):
            for photo in range(photos):
                random = np.random.default_rng([person, photo])
                landmarks = torch.tensor(
                    np.array(tiny.face_points()) * 0.3 + random.uniform(0, 4, 2) + [-2.0, -1.0], dtype=torch.float32
                )
                coefficients = predictor.encode(landmarks[None])
                points = predictor.decode(coefficients)[0]
                image = draw_person(person, points.numpy(), random)
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
                crop = align_faces(pixels, points[None], "arcface", CROP_SIZE)
                embedding = recognizer.embed(crop)[0].numpy() * (1 if settings.normalized_embeds else 1.5)
                face = PIL.Image.fromarray((crop[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
                if settings.recognition_crop_size not in (None, CROP_SIZE):
                    face = face.resize((settings.recognition_crop_size,) * 2)
                sample = PreparedFace(
                    image=encode(image, "PNG"),
                    clip_crop=encode(image, "JPEG"),
                    recognition_crop=None if settings.recognition_crop is None else encode(face, "PNG"),
                    embedding=embedding,
                    landmarks=points.numpy(),
                    **{name: value[0].numpy() for name, value in vars(coefficients).items()},
                    info={"identity": f"person{person}", "caption": f"person {photo}", "image_format": "png"},
                    key_points=five_points(points.numpy()) + [1.0, -0.5] if key_points else None,
                )
                writer.add(sample, f"{person:03d}-{photo}")


def draw_person(person: int, points: np.ndarray, random: np.random.Generator) -> PIL.Image.Image:
    colors = np.random.default_rng(person).integers(0, 255, (3, 3))
    image = PIL.Image.new("RGB", (SIZE, SIZE), tuple(random.integers(0, 60, 3).tolist()))
    draw = PIL.ImageDraw.Draw(image)
    draw.polygon(
        [tuple(point) for point in points[[*range(17), *range(26, 16, -1)]].tolist()], tuple(colors[0].tolist())
    )
    draw.polygon([tuple(point) for point in points[48:60].tolist()], tuple(colors[1].tolist()))
    for eye in (range(36, 42), range(42, 48)):
        draw.polygon([tuple(point) for point in points[list(eye)].tolist()], tuple(colors[2].tolist()))
    return image


def encode(image: PIL.Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def config(base_model: Path, faces: Path, output: Path, **changes) -> TrainingConfig:
    values = {
        "output_dir": str(output),
        "base": {"model": str(base_model)},
        "data": {
            "shards": [str(faces)],
            "validation": [],
            "resolution": SIZE,
            "workers": 0,
            "zoom": [1.0, 1.2],
        },
        "steps": 4,
        "adapter": {
            "face_encoder_id": tiny.FACE_ENCODER,
            "face_embed_dim": tiny.FACE_EMBED_DIM,
            "image_encoder_id": str(base_model / "face_encoder"),
            "bundle_image_encoder": True,
            "num_tokens": 4,
            "mixer": {"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8},
        },
        "batch_size": 2,
        "identity_loss": {
            "weight": 0.5,
            "recognizer": {"network": "tiny_training:TinyRecognizer", "size": CROP_SIZE},
            "min_snr": 0.3,
        },
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "ema_decay": 0.9,
        "checkpoint_every": 1000,
        "log_every": 1,
        "validation": {"batches": 1, "images": 1, "inference_steps": 2},
    }
    for key, value in changes.items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return parse_settings(TrainingConfig, values, "config")


def reset_accelerate() -> None:
    """Accelerate's state belongs to the process: a new run starts without that of the last one."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(config: TrainingConfig) -> Trainer:
    """Runs to the end; the last losses are in `results`."""
    reset_accelerate()
    trainer = Trainer(config)
    trainer.results = trainer.train()
    return trainer


def train_to_first_checkpoint(config: TrainingConfig) -> Trainer:
    """A run that is stopped as soon as its first checkpoint and the adapter beside it are saved."""
    trainer = Trainer(config)
    save = trainer._save_adapter

    def stop(results):
        save(results)
        raise KeyboardInterrupt

    trainer._save_adapter = stop
    try:
        trainer.train()
    except KeyboardInterrupt:
        return trainer
    raise AssertionError("the run ended without a checkpoint")


def assert_same(first, second, name=""):
    """Bit for bit, through nested containers."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for number, (a, b) in enumerate(zip(first, second)):
            assert_same(a, b, f"{name}[{number}]")
    else:
        assert first == second, name


def noise_schedule(prediction_type="epsilon", zero_snr=False):
    """A noise schedule, and the scheduler that it is of."""
    scheduler = DDIMScheduler.from_config(
        tiny.scheduler().config, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr
    )
    return NoiseSchedule(scheduler), scheduler


def normal_samples(seed=0, dtype=torch.float32):
    """Clean samples and noise, `(4, 4, 8, 8)` each."""
    return torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
