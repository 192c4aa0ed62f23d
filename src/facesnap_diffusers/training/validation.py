"""What a run looks at while it trains: losses on fixed noise, and images of fixed people."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..clip import ClipEncoder
from ..errors import InputError, one_line
from ..faces.analyzers import FaceAnalyzer, default_analyzer
from ..faces.face import Face
from ..identity import FaceIdentity
from .objective import Objective
from .samples import TrainingSamples, collate
from .training_config import ValidationConfig


#: Distance that counts for a picture without a face: more than that of any two people.
NO_FACE = 2.0


@torch.no_grad()
def validation_losses(
    objective: Objective, samples: TrainingSamples, batches: int, batch_size: int, device: torch.device
) -> dict[str, float]:
    """
    Losses of the same samples with the same noise every time, the timesteps spread over the schedule. A batch whose pictures
    have several sizes is taken in parts of one size.
    """
    sums: dict[str, float] = {}
    total = batches * batch_size
    for number in range(batches):
        parts: dict[torch.Size, list[dict[str, Any]]] = {}
        for position in range(number * batch_size, (number + 1) * batch_size):
            sample = samples[position]
            # a stride that has no divisor in common with the count visits all timesteps, and every batch has all sorts
            spread = (position * _stride(total)) % total
            sample["timestep"] = torch.tensor((2 * spread + 1) * samples.num_timesteps // (2 * total))
            parts.setdefault(sample["noise"].shape, []).append(sample)
        for part in parts.values():
            losses = objective(to_device(collate(part), device), step=objective.first_identity_step)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item() * (len(part) / batch_size) / batches
    return sums


@torch.no_grad()
def validation_sheet(
    objective: Objective, samples: TrainingSamples, config: ValidationConfig, seed: int, device: torch.device
) -> PIL.Image.Image:
    """A row for each sample: reference, landmarks, generated image, target, each in the middle of a cell that all fit into."""
    rows = []
    for position in range(config.images):
        batch = collate([samples[position]])
        target = batch["pixel_values"][0]
        height, width = target.shape[-2:]
        side = min(height, width)
        reference = PIL.Image.fromarray(_to_uint8(batch["recognition_crop"][0])).resize((side, side))
        drawn = objective.conditioner.landmark_picture(objective.drawn_points(batch), height, width)[0]
        generated = sample_picture(objective, batch, config, seed + position)
        rows.append([np.array(reference), _to_uint8(drawn), generated, _to_uint8(target / 2 + 0.5)])
    height, width = (max(picture.shape[axis] for row in rows for picture in row) for axis in range(2))
    centered = [[_centered(picture, height, width) for picture in row] for row in rows]
    return PIL.Image.fromarray(np.vstack([np.hstack(row) for row in centered]))


@torch.no_grad()
def sample_picture(objective: Objective, batch: dict[str, Any], config: ValidationConfig, seed: int) -> np.ndarray:
    """The picture that the pipeline makes for a batch of one, `(height, width, 3)`, `uint8`."""
    height, width = batch["pixel_values"].shape[-2:]
    output = objective.pipeline(
        _prompt(batch, config),
        identity=_identity(objective, batch),
        landmarks=objective.drawn_points(batch) if objective.pipeline.ffrnet is not None else None,
        height=height,
        width=width,
        num_inference_steps=config.inference_steps,
        guidance_scale=config.guidance_scale,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    return (output.images[0] * 255).round().astype(np.uint8)


def validation_likeness(
    objective: Objective,
    samples: TrainingSamples,
    config: ValidationConfig,
    judge: FaceAnalyzer | None,
    seed: int,
    clip: ClipEncoder | None = None,
) -> dict[str, float]:
    r"""
    What a second recognizer and a CLIP model find in sampled pictures, one of each of `config.people` people.

    Returns:
        `dict[str, float]`: `face_distance`: mean distance of its embeddings of picture and target photo, of unit length
        except dlib's; a picture without a face counts as [`NO_FACE`]. `faces_found`: share of pictures with a face.
        `points`: mean distance of its landmarks from those asked for, divided by the distance of the outer eye corners.
        `clip_t`: mean cosine of CLIP's embeddings of picture and prompt.
    """
    distances, points, similarities, faces_found = [], [], [], 0
    for position in one_of_each_person(samples, config.people):
        batch = collate([samples[position]])
        target_face = None
        if judge is not None:
            target_face = _largest(judge.analyze(_to_uint8(batch["pixel_values"][0] / 2 + 0.5)))
        if target_face is None and clip is None:
            continue
        picture = sample_picture(objective, batch, config, seed + position)
        if clip is not None:
            similarities.append(_clip_t(clip, picture, _prompt(batch, config)))
        if judge is None or target_face is None:
            continue  # the judge cannot say anything of this photo
        face = _largest(judge.analyze(picture))
        if face is None:
            distances.append(NO_FACE)
            continue
        faces_found += 1
        distances.append(float(np.linalg.norm(_embedding(face, judge) - _embedding(target_face, judge))))
        wanted = batch["landmarks"][0, :68].numpy()
        error = np.linalg.norm(face.landmarks[:68, :2] - wanted, axis=1).mean()
        points.append(float(error / np.linalg.norm(wanted[45] - wanted[36])))
    values = {"face_distance": distances, "points": points, "clip_t": similarities}
    found = {name: float(np.mean(numbers)) for name, numbers in values.items() if numbers}
    return {**found, "faces_found": faces_found / len(distances)} if distances else found


def one_of_each_person(samples: TrainingSamples, most: int) -> list[int]:
    """The first positions that show people who were not there before, so that nobody counts more than others."""
    seen: set[int] = set()
    positions = []
    for position in range(len(samples.faces)):
        person = samples.faces.person_number(samples.photo(position))
        if person not in seen:
            seen.add(person)
            positions.append(position)
        if len(positions) == most:
            break
    return positions


def load_judge(name: str, normalize: bool = True) -> FaceAnalyzer:
    """The analyzer of a face encoder, or what `package.module:function` returns. Raises [`InputError`]."""
    module, colon, function = name.partition(":")
    if not colon:
        return default_analyzer(name, normalize)
    try:
        judge = getattr(import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"validation.judge {name!r} cannot be imported ({one_line(error)}); name package.module:function"
        ) from error
    if not isinstance(judge, FaceAnalyzer):
        raise InputError(f"validation.judge {name!r} returned {type(judge).__name__}; it must return a FaceAnalyzer")
    return judge


def _prompt(batch: dict[str, Any], config: ValidationConfig) -> str:
    return str(config.prompt or batch["caption"][0])


def _clip_t(clip: ClipEncoder, picture: np.ndarray, prompt: str) -> float:
    with torch.autocast(clip.model.device.type, enabled=False):  # of the run: CLIP is as exact as in an evaluation
        return float(clip.encode_images([picture])[0] @ clip.encode_prompts([prompt])[0])


def _largest(faces: list[Face]) -> Face | None:
    return max(faces, key=lambda face: face.area, default=None)


def _embedding(face: Face, judge: FaceAnalyzer) -> np.ndarray:
    length = 1.0 if judge.encoder.startswith("dlib/") else float(np.linalg.norm(face.embedding))
    return np.asarray(face.embedding) / max(length, 1e-12)


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _identity(objective: Objective, batch: dict[str, Any]) -> FaceIdentity:
    conditioner = objective.conditioner
    states = conditioner.image_states(batch["clip_crop"]) if "clip_crop" in batch else None
    return FaceIdentity(
        face_embeds=batch["face_embeds"][0],
        face_encoder_id=conditioner.config.face_encoder_id,
        image_hidden_states=None if states is None else states[0].float().cpu(),
        image_encoder_id=conditioner.config.image_features_id,
    )


def _to_uint8(image: torch.Tensor) -> np.ndarray:
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def _centered(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture in the middle of a black one."""
    top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
    centered = np.zeros((height, width, 3), np.uint8)
    centered[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return centered


def _stride(total: int) -> int:
    return next(prime for prime in (7, 11, 13, 17, 19, 23, 29, 31) if total % prime)
