"""`facesnap landmarks`: the landmarks of a photo, detected, fitted and re-posed."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch

    from ..faces.analyzers import FaceAnalyzer
    from ..faces.expression import Expression
    from ..faces.face import Face
    from ..faces.pose import HeadPose


PANEL = 512  # pixels a side


class Analyzer(StrEnum):
    """What can find the face."""

    insightface = "insightface"
    dlib = "dlib"


def landmarks(
    photo: Annotated[str, typer.Argument(help="Photo of a face: a file or an http(s) URL.")],
    yaw: Annotated[float | None, typer.Option(help="Degrees; > 0 turns the nose to the right of the picture.")] = None,
    pitch: Annotated[float | None, typer.Option(help="Degrees; > 0 lifts the nose.")] = None,
    roll: Annotated[float | None, typer.Option(help="Degrees; > 0 tilts the head clockwise.")] = None,
    expression: Annotated[
        str | None,
        typer.Option(help="A preset (smile, laugh, surprise, ...), or strengths: jawOpen=0.4,mouthSmileLeft=0.8"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("landmarks.png"),
    analyzer: Annotated[Analyzer, typer.Option(help="What finds the face.")] = Analyzer.insightface,
) -> None:
    """Draw the landmarks of a photo: detected, fitted and re-posed, side by side."""
    from ..faces.analyzers import DlibFaceAnalyzer, InsightFaceAnalyzer
    from ..faces.detection import find_face
    from ..faces.expression import Expression
    from ..faces.photo import load_photo
    from ..files import atomic_file
    from ..preflight import check_picture_path, instead_of, without_landmarks_of_ones_own

    check_picture_path(output)
    target = None if expression is None else Expression.of(expression)
    pixels = load_photo(photo, "photo")  # before a model is downloaded
    with instead_of("use DlibFaceAnalyzer", "pass --analyzer dlib"):
        finder: FaceAnalyzer = DlibFaceAnalyzer() if analyzer is Analyzer.dlib else InsightFaceAnalyzer()
    with without_landmarks_of_ones_own():
        face = find_face(pixels, finder, name="photo")
    picture, pose = draw_panels(face, yaw, pitch, roll, target)
    with atomic_file(output) as temporary:
        picture.save(temporary)
    typer.echo(f"yaw {pose.yaw:.0f}°, pitch {pose.pitch:.0f}°, roll {pose.roll:.0f}° in the photo; wrote {output}")


def draw_panels(
    face: "Face", yaw: float | None, pitch: float | None, roll: float | None, expression: "Expression | None"
) -> tuple["PIL.Image.Image", "HeadPose"]:
    """
    Detected and fitted landmarks over the photo, and those of the same person in another pose and expression; angles
    and expression that are `None` are those of the photo. Also returns the pose in the photo.
    """
    import dataclasses

    import torch

    from ..faces.drawing import draw_landmarks
    from ..faces.pose import HeadPose
    from ..models.landmark_predictor import load_landmark_predictor

    predictor = load_landmark_predictor()
    detected = torch.as_tensor(face.landmarks)[None]
    with torch.inference_mode():
        own = predictor.encode(detected)
        own_pose = HeadPose(*own.rotation[0].clamp(-90, 90).tolist())
        angles = zip(own_pose.as_tuple(), (yaw, pitch, roll), strict=True)
        target = HeadPose(*(old if new is None else new for old, new in angles))
        changed = dataclasses.replace(own, rotation=own.rotation.new_tensor([target.as_tuple()]))
        if expression is not None:
            weights = torch.as_tensor(expression.to_vector(predictor.config.expression_names))
            changed = dataclasses.replace(changed, expression=weights[None])
        # detectors give no eyelid points: they are drawn at the outer eye corners
        detected = detected[:, [*range(68), 36, 36, 45, 45], :2]
        fitted, reposed = predictor.decode(own), predictor.decode(changed)

        everything = torch.cat([detected, fitted, reposed], dim=1)[0]
        low, high = everything.amin(dim=0), everything.amax(dim=0)
        side = 1.25 * float((high - low).max())
        corner = (low + high) / 2 - side / 2
        panels = draw_landmarks((torch.cat([detected, fitted, reposed]) - corner) * (PANEL / side), PANEL, PANEL)

    photo = _crop(face.image, corner.tolist(), side)
    return _side_by_side(photo, panels), own_pose


def _crop(image: "np.ndarray", corner: list[float], side: float) -> "PIL.Image.Image":
    import PIL.Image

    x, y = corner
    scale = side / PANEL
    # `transform` counts from pixels' edges, landmarks from their centers
    box = (scale, 0, x + (1 - scale) / 2, 0, scale, y + (1 - scale) / 2)
    return PIL.Image.fromarray(image).transform(
        (PANEL, PANEL), PIL.Image.Transform.AFFINE, box, resample=PIL.Image.Resampling.BILINEAR
    )


def _side_by_side(photo: "PIL.Image.Image", panels: "torch.Tensor") -> "PIL.Image.Image":
    import numpy as np
    import PIL.Image
    import PIL.ImageDraw

    dark = 0.45 * np.asarray(photo) / 255
    detected, fitted, reposed = panels.permute(0, 2, 3, 1).numpy()
    # each part's colour has one channel at its maximum: its value is the share of the pixel that a disc covers
    over_photo = [points + (1 - points.max(axis=-1, keepdims=True)) * dark for points in (detected, fitted)]
    pictures = [*over_photo, reposed]
    sheet = PIL.Image.fromarray((255 * np.concatenate(pictures, axis=1)).round().astype(np.uint8))
    pen = PIL.ImageDraw.Draw(sheet)
    for number, label in enumerate(("detected", "fitted", "re-posed")):
        pen.text((number * PANEL + 10, 8), label, fill="white", font_size=20)
    return sheet
