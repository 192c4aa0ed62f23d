"""Rendered people, of whom the true picture in each pose and expression is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image

from ...errors import InputError, one_line
from ...faces.expression import Expression
from ...faces.photo import MAX_SIDE
from ...faces.pose import HeadPose
from ..cases import Case
from .base import FACE_COLUMNS, Benchmark, Column


MANIFEST = "manifest.json"
FORMAT = "facesnap-nano-eval"
VERSION = 2


def nano(folder: Path, seed: int = 0) -> Benchmark:
    """
    Reads a folder of PNGs and a `manifest.json`:

        {"format": "facesnap-nano-eval", "version": 2,
         "background_colors": {"blue": [66, 118, 206], ...},
         "people": {"0000": {"reference": ["0000/reference.png"], "landmarks": [[48.9, 61.2], ...]}, ...},
         "cases": [{"id": "0000-a", "person": "0000", "prompt": "a photo of a person, smiling, blue background",
                    "pose": [20.0, -3.0, 1.5], "expression": {"mouthSmile_L": 0.8, "mouthSmile_R": 0.8},
                    "face_box": [0.3, 0.25, 0.7, 0.7], "ground_truth": "0000/a.png", "background": "blue",
                    "driving_landmarks": [[51.2, 60.8], ...], "seed": 17, "group": "steered"}, ...]}

    Paths are relative to the folder. A person's `landmarks`, the 72 points in the one reference picture, are used
    in place of what a detector for photos finds. Of a case, `id`, `person` and `prompt` are needed. `pose` is yaw, pitch
    and roll in degrees ([`HeadPose`]), `expression` strengths by name ([`Expression`]), `face_box` shares of the image for the
    person's frontal, neutral face, `driving_landmarks` the 72 points of *another* person, rendered with the same pose,
    expression and camera, in pixels of the ground truth. Without `seed` the cases are numbered; the
    argument is added.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"data {str(folder)!r} has no {MANIFEST}; make the folder with examples/nano") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}); make the folder again") from None
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path} is not a manifest of format {FORMAT!r}, version {VERSION}; make the folder again")

    for name, kind in (("people", dict), ("cases", list)):
        if not isinstance(manifest.get(name), kind):
            raise InputError(f"{path} has no {name}; make the folder again")
    cases = []
    for number, entry in enumerate(manifest["cases"]):
        try:
            cases.append(_case({"seed": number, **entry}, manifest["people"], folder, seed))
        except InputError as error:
            raise InputError(f"{path}: case {number}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: case {number} is damaged ({type(error).__name__}: {one_line(error)})") from None
    for name, case in {case.person: case for case in cases}.items():
        if case.reference_landmarks is not None:
            _check_size(name, case.reference[0])
    columns = (
        *FACE_COLUMNS,
        Column("NME to ground truth", "ground_truth_nme", better="lower"),
        Column("yaw °", "ground_truth_yaw_error", better="lower", digits=1),
        Column("pitch °", "ground_truth_pitch_error", better="lower", digits=1),
        Column("roll °", "ground_truth_roll_error", better="lower", digits=1),
        Column("NME to target", "landmark_nme", better="lower"),
        Column("yaw ° to target", "yaw_error", better="lower", digits=1),
        Column("pose copied", "pose_copy", better="lower", digits=2),
        Column("distance to ground truth", "ground_truth_distance", "median", "lower"),
        Column("pixels to ground truth", "ground_truth_pixel_error", better="lower"),
        Column("copy-paste", "copy_paste", better="lower"),
        Column("background %", "background", "percent", "higher", digits=1),
        Column("CLIP-T", "clip_t", better="higher", digits=2),
        Column("LPIPS diversity", "diversity", better="higher"),
        Column("FID", "fid", better="lower", digits=1),
        Column("KID", "kid", better="lower", digits=4),
    )
    colors = {name: tuple(rgb) for name, rgb in manifest.get("background_colors", {}).items()}
    notes = (
        "NME and angles to the ground truth compare the points found in the image with those found in the true render; those to"
        " the target, with the re-targeted points that the method was to follow, which are estimates themselves.",
    )
    return Benchmark("nano", tuple(cases), columns, background_colors=colors, notes=notes)


def _check_size(person: str, reference: Path) -> None:
    """Raises [`InputError`] where a reference is scaled down when it is read, and its landmarks would lie elsewhere."""
    try:
        with PIL.Image.open(reference) as picture:
            side = max(picture.size)
    except OSError as error:
        raise InputError(f"{reference} cannot be read ({one_line(error)}); make the folder again") from None
    if side > MAX_SIDE:
        raise InputError(
            f"person {person} has landmarks, in a reference of more than {MAX_SIDE} px, which is scaled down when it is read;"
            " scale both down"
        )


def _case(entry: dict[str, Any], people: dict[str, Any], folder: Path, seed: int) -> Case:
    known = set(Case.__dataclass_fields__) - {"reference", "reference_landmarks"}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise InputError(f"unknown entries {unknown}; known are {sorted(known)}")
    person = people[entry["person"]]
    driving, box, pose, expression = (
        entry.get(name) for name in ("driving_landmarks", "face_box", "pose", "expression")
    )
    return Case(
        id=entry["id"],
        person=entry["person"],
        reference=tuple(_existing(folder, name) for name in person["reference"]),
        reference_landmarks=_points(person.get("landmarks"), "landmarks of the person"),
        prompt=entry["prompt"],
        seed=seed + int(entry["seed"]),
        group=entry.get("group", "all"),
        pose=None if pose is None else HeadPose(*pose),
        expression=None if expression is None else Expression.of(expression),
        face_box=None if box is None else _box(box),
        ground_truth=_existing(folder, entry["ground_truth"]) if entry.get("ground_truth") else None,
        driving_landmarks=_points(driving, "driving_landmarks"),
        background=entry.get("background"),
    )


def _points(points: Any, name: str) -> tuple[tuple[float, float], ...] | None:
    if points is None:
        return None
    if len(points) != 72 or any(len(point) != 2 for point in points):
        raise InputError(f"{name} must be 72 points (x, y)")
    return tuple((float(x), float(y)) for x, y in points)


def _box(sides: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) for side in sides)
    return left, top, right, bottom


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise InputError(f"{name} is missing; make the folder again")
    return path
