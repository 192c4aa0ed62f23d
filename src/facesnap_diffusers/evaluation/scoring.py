"""The metrics of each image, and their summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.prepared_face import resize_points
from ..errors import InputError
from ..faces.photo import load_photo
from ..models.landmark_predictor import load_landmark_predictor
from .benchmarks.base import Benchmark
from .cases import Case
from .features import Features, FeatureStore, FoundFace
from .judges import metric_of
from .metrics import (
    angle_errors,
    background_color,
    copy_paste,
    cosine_similarity,
    euclidean_distance,
    landmark_nme,
    pixel_error,
    pose_copy,
    read_landmarks,
    retrieval_rank,
)
from .targets import retargeted_landmarks


AXES = ("yaw", "pitch", "roll")

#: The entries of a row that are not metrics.
LABELS = ("case", "person", "group")


class Scorer:
    r"""
    Scores the images of a benchmark's cases.

    Args:
        benchmark ([`Benchmark`]): The cases.
        store ([`FeatureStore`]): Features of the images. Its first analyzer's faces count; further ones add likeness.
        progress (`Callable`): Wraps iterables, see [`evaluate`].
    """

    def __init__(self, benchmark: Benchmark, store: FeatureStore, progress: Callable[..., Iterable[Any]]):
        self.benchmark = benchmark
        self.store = store
        self.progress = progress
        self.predictor = load_landmark_predictor()
        self.encoder_ids = [analyzer.encoder for analyzer in store.analyzers]
        self.references: dict[str, Features] = {}
        self._galleries: dict[str, tuple[list[str], np.ndarray]] = {}
        prompts = sorted({case.prompt for case in benchmark.cases}) if store.clip else []
        self._prompts = dict(zip(prompts, store.clip.encode_prompts(prompts), strict=True)) if store.clip else {}

    def read_references(self, gallery: Mapping[str, Sequence[Path]]) -> set[str]:
        """Reads the reference photos of all people of a gallery, and returns the people in whose first photo no face is found."""
        without_face = set()
        for person, paths in self.progress(gallery.items(), "references", len(gallery)):
            seen = [self.store.get(path, is_photo=True) for path in paths]
            first = seen[0]
            if self.encoder_ids[0] not in first.faces:
                without_face.add(person)
                continue
            faces = {}
            for encoder_id, face in first.faces.items():
                embeddings = [
                    features.faces[encoder_id].embedding for features in seen if encoder_id in features.faces
                ]
                # as `FaceIdentity.fuse`: as long as those of one photo
                mean = np.mean(embeddings, axis=0)
                mean *= np.linalg.norm(embeddings, axis=1).mean() / np.linalg.norm(mean)
                faces[encoder_id] = FoundFace(face.landmarks, mean, face.size)
            self.references[person] = Features(faces, first.clip)
        for encoder_id in self.encoder_ids:
            people = [person for person, features in self.references.items() if encoder_id in features.faces]
            if people:
                embeddings = [self.references[person].faces[encoder_id].embedding for person in people]
                self._galleries[encoder_id] = people, np.stack(embeddings)
        return without_face

    def score(
        self, name: str, images: Mapping[str, Path], text_only: Mapping[str, Path] | None = None
    ) -> list[dict[str, Any]]:
        r"""
        Scores one method's images.

        Args:
            name (`str`): The method's, for the progress bar.
            images (`Mapping[str, Path]`): Image file by case id; a file that does not exist is an image that the method
                failed to make.
            text_only (`Mapping[str, Path]`, *optional*): The same of the base model alone.

        Returns:
            `list[dict]`: A row for each case: `case`, `person`, `group`, and its metrics; `None` where one has no value.
        """
        cases = self.benchmark.cases
        return [
            self._row(case, images[case.id], (text_only or {}).get(case.id))
            for case in self.progress(cases, f"{name}: metrics", len(cases))
            if case.person in self.references
        ]

    def target(self, case: Case, height: int, width: int) -> np.ndarray:
        """The re-targeted landmarks `(72, 2)` of a case, in pixels of an image of that size."""
        reference = self.references[case.person].faces[self.encoder_ids[0]]
        return retargeted_landmarks(self.predictor, case, reference, height, width)

    def _row(self, case: Case, path: Path, text_only: Path | None) -> dict[str, Any]:
        row: dict[str, Any] = {"case": case.id, "person": case.person, "group": case.group}
        row["failed"] = float(not path.exists())
        image = load_photo(path) if path.exists() else None
        features = self.store.get(path) if path.exists() else Features()
        ground_truth = self.store.get(case.ground_truth) if case.ground_truth is not None else None

        for encoder_id in self.encoder_ids:
            values = self._likeness(case, encoder_id, features.faces.get(encoder_id), ground_truth)
            row |= {metric_of(name, encoder_id, self.encoder_ids): value for name, value in values.items()}
        face = features.faces.get(self.encoder_ids[0])
        ground_truth_face = ground_truth.faces.get(self.encoder_ids[0]) if ground_truth else None
        if image is not None:
            row |= self._steering(case, face, ground_truth_face, image.shape[:2])
            row |= self._clip(case, features, ground_truth, text_only)
            if case.ground_truth is not None:
                row["ground_truth_pixel_error"] = pixel_error(image, load_photo(case.ground_truth))
            if case.background is not None:
                colors = self.benchmark.background_colors
                if case.background not in colors:
                    raise InputError(f"case {case.id}: background {case.background!r} is not one of {list(colors)}")
                row["background"] = float(background_color(image, colors) == case.background)
        return row

    def _likeness(
        self, case: Case, encoder_id: str, face: FoundFace | None, ground_truth: Features | None
    ) -> dict[str, float | None]:
        values: dict[str, float | None] = {"no_face": float(face is None)}
        people, gallery = self._galleries.get(encoder_id, ([], np.empty(0)))
        if case.person not in people:
            return values
        # an image without a face is a miss
        values |= {"top1": 0.0, "top5": 0.0}
        if face is None:
            return values
        index = people.index(case.person)
        rank = retrieval_rank(face.embedding, gallery, index)
        values |= {"top1": float(rank < 1), "top5": float(rank < 5)}
        values["face_similarity"] = cosine_similarity(face.embedding, gallery[index])
        values["face_distance"] = euclidean_distance(face.embedding, gallery[index])
        ground_truth_face = ground_truth.faces.get(encoder_id) if ground_truth else None
        if ground_truth_face is not None:
            values["ground_truth_similarity"] = cosine_similarity(face.embedding, ground_truth_face.embedding)
            values["ground_truth_distance"] = euclidean_distance(face.embedding, ground_truth_face.embedding)
            values["copy_paste"] = copy_paste(face.embedding, ground_truth_face.embedding, gallery[index])
        return values

    def _steering(
        self, case: Case, face: FoundFace | None, ground_truth_face: FoundFace | None, size: tuple[int, int]
    ) -> dict[str, float | None]:
        if face is None or not (case.is_steered or ground_truth_face is not None):
            return {}
        reference = self.references[case.person].faces[self.encoder_ids[0]]
        targets = {}
        if case.is_steered:
            targets[""] = self.target(case, *size)
        if ground_truth_face is not None:
            scale = np.array(size[::-1]) / np.array(ground_truth_face.size[::-1])
            targets["ground_truth_"] = resize_points(ground_truth_face.landmarks[:, :2], scale)
        # the same predictor reads image and target, so that its errors in both cancel out
        rotations, posed = read_landmarks(self.predictor, [face.landmarks, reference.landmarks, *targets.values()])
        values: dict[str, float | None] = {}
        for number, (prefix, target) in enumerate(targets.items(), start=2):
            values["landmark_nme" if prefix == "" else "ground_truth_nme"] = landmark_nme(face.landmarks, target)
            errors = angle_errors(rotations[0], rotations[number])
            values |= {f"{prefix}{axis}_error": float(error) for axis, error in zip(AXES, errors, strict=True)}
        # the last target is the ground truth where there is one
        values["pose_copy"] = pose_copy(posed[0], posed[-1], posed[1])
        return values

    def _clip(
        self, case: Case, features: Features, ground_truth: Features | None, text_only: Path | None
    ) -> dict[str, float | None]:
        if features.clip is None:
            return {}
        compared = {"clip_i": self.references[case.person].clip}
        if ground_truth is not None:
            compared["clip_i_ground_truth"] = ground_truth.clip
        if text_only is not None and text_only.exists():
            compared["clip_i_text"] = self.store.get(text_only).clip
        values: dict[str, float | None] = {
            name: cosine_similarity(features.clip, embedding)
            for name, embedding in compared.items()
            if embedding is not None
        }
        values["clip_t"] = 100 * cosine_similarity(features.clip, self._prompts[case.prompt])
        return values


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    r"""
    Mean, median, standard error of the mean and number of values of each metric: over all rows, and, where there are
    several groups, over each.

    Returns:
        `dict`: by group (`"all"` is every row), then by metric, then `"mean"`, `"median"`, `"sem"`, `"n"`.
    """
    groups = {"all": list(rows)}
    names = list(dict.fromkeys(row["group"] for row in rows))
    if names != ["all"]:
        groups |= {name: [row for row in rows if row["group"] == name] for name in names}
    return {group: _summary(members) for group, members in groups.items()}


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    metrics = dict.fromkeys(name for row in rows for name in row if name not in LABELS)
    summary = {}
    for metric in metrics:
        values = np.array([row[metric] for row in rows if row.get(metric) is not None], dtype=np.float64)
        if len(values):
            summary[metric] = {
                "mean": float(values.mean()),
                "median": float(np.median(values)),
                "sem": float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0,
                "n": len(values),
            }
    return summary
