"""The ICT FaceKit head, cut down to what a portrait shows, with the masks that a shader needs to paint it."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import scipy.sparse
import torch
from scipy.spatial import cKDTree

from facesnap_diffusers.data.ict_face_model import IctFaceModel
from facesnap_diffusers.models import landmark_predictor


SKIN, MOUTH, SOCKET, GUMS, TEETH, EYE, HAIR, FRAME, SHIRT = range(9)
"""What a vertex belongs to; the fragment shader branches on it."""

SCALP_CENTER = np.array([0.0, 4.5, 1.5], np.float32)
"""Centre of the sphere (cm) in whose directions hair is laid out."""

NECK_PIVOT = np.array([0.0, -7.0, 1.0], np.float32)
"""The point (cm) about which the head turns."""

IRIS_RADIUS = 0.76
EYEBALL_DEPTH_KEPT = 0.25

# Vertex ranges of the ICT FaceKit topology, first and last.
_HEAD = (0, 11247)
_MOUTH_SOCKET = (11248, 13293)
_EYE_SOCKETS = (13294, 14061)
_GUMS_AND_TONGUE = (14062, 17038)
_TEETH = (17039, 21450)
_EYEBALLS = ((21451, 23020), (23021, 24590))
_FRONT_TEETH_POLYGONS = ((17597, 18662), (19832, 20912))


def find_face_model(path: str | os.PathLike | None = None) -> Path:
    """The packed ICT model: `path`, else `$FACESNAP_ICT_MODEL`, else `../shared/data` beside the repository.

    Raises:
        FileNotFoundError: if there is no file at that place.
    """
    repository = Path(__file__).resolve().parents[3]
    default = repository.parent / "shared/data/ict_facekit/ict_face_model.npz"
    file = Path(path or os.environ.get("FACESNAP_ICT_MODEL") or default)
    if not file.is_file():
        raise FileNotFoundError(
            f"no ICT face model at '{file}': clone https://github.com/ICT-VGL/ICT-FaceKit, pack it with"
            " examples/landmark_predictor/pack.py, and set FACESNAP_ICT_MODEL to the packed file"
        )
    return file


def smoothstep(low, high, x):
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def rotation_matrix(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """R = Rz(roll) Ry(yaw) Rx(pitch), degrees; positive yaw turns to the person's left, positive pitch looks down."""
    # the package's pitch and roll have the opposite sign, and its head is lifted after it is turned
    angles = torch.tensor([[0, 0, -roll], [yaw, 0, 0], [0, -pitch, 0]], dtype=torch.float64)
    rz, ry, rx = landmark_predictor.rotation_matrix(torch.deg2rad(angles)).numpy()
    return (rz @ ry @ rx).astype(np.float32)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray, incidence: scipy.sparse.csr_matrix) -> np.ndarray:
    """Area-weighted unit normals; `incidence` (groups, T) sums the triangles around every vertex."""
    a = vertices[triangles[:, 0]]
    faces = np.cross(vertices[triangles[:, 1]] - a, vertices[triangles[:, 2]] - a)
    normals = incidence @ faces
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9)


def vertex_incidence(groups: np.ndarray, triangles: np.ndarray) -> scipy.sparse.csr_matrix:
    """(groups, T) matrix with a one where a triangle has a corner in a group of vertices."""
    count = len(triangles)
    ones = np.ones(3 * count, np.float32)
    shape = (int(groups.max()) + 1, count)
    return scipy.sparse.csr_matrix((ones, (groups[triangles.ravel()], np.repeat(np.arange(count), 3))), shape=shape)


class FaceModel:
    """Vertices (V, 3) in cm, x to the person's left, y up, z forward, with linear identity and expression bases.

    Attributes:
        identity: (100, V, 3), coefficients ~ N(0, 1).
        expression: (53, V, 3), coefficients 0 to 1; `expression_index` maps names to rows.
        landmarks: indices of the 72 points among `vertices`.
        part: (V,) one of the constants above.
    """

    def __init__(self, path: str | os.PathLike | None = None):
        model = IctFaceModel.load(find_face_model(path))
        kept = self._kept_triangles(model)
        used = np.unique(np.concatenate([kept.ravel(), model.landmarks]))
        place = np.full(len(model.vertices), -1)
        place[used] = np.arange(len(used))

        self.vertices = model.vertices[used]
        self.triangles = place[kept].astype(np.int32)
        self.landmarks = place[model.landmarks]
        self.part = self._parts(len(model.vertices))[used]
        self.identity = model.identity[:, used].astype(np.float32)
        self.expression = model.expression[:, used].astype(np.float32)
        self.expression_names = model.expression_names
        self.expression_index = {name: row for row, name in enumerate(self.expression_names)}

        # The source splits vertices along texture seams; normals are shared across them.
        key = np.column_stack([np.round(self.vertices * 200).astype(np.int64), self.part])
        self._seam_group = np.unique(key, axis=0, return_inverse=True)[1].ravel()
        self._incidence = vertex_incidence(self._seam_group, self.triangles)

        self.follows_head = np.where(self.part == SKIN, smoothstep(-16.0, -8.5, self.vertices[:, 1]), 1.0)
        self.iris_distance = self._iris_distance(used)
        self.lip_distance = self._lip_distance()
        self.beard_masks = self._beard_masks()
        self._scalp_lookup()

    @staticmethod
    def _parts(count: int) -> np.ndarray:
        part = np.full(count, -1)
        ranges = [(_HEAD, SKIN), (_MOUTH_SOCKET, MOUTH), (_EYE_SOCKETS, SOCKET), (_GUMS_AND_TONGUE, GUMS)]
        ranges += [(_TEETH, TEETH)] + [(eye, EYE) for eye in _EYEBALLS]
        for (first, last), value in ranges:
            part[first : last + 1] = value
        return part

    @classmethod
    def _kept_triangles(cls, model: IctFaceModel) -> np.ndarray:
        """Leaves out the tear film, the lashes, the back teeth and the back of the eyeballs, which nobody sees."""
        vertices, triangles, polygon = model.vertices, model.triangles, model.triangle_polygon
        part = cls._parts(len(vertices))[triangles[:, 0]]
        front_teeth = np.zeros(len(triangles), bool)
        for first, last in _FRONT_TEETH_POLYGONS:
            front_teeth |= (polygon >= first) & (polygon <= last)
        depth = vertices[triangles][..., 2].min(1)
        eye_center = np.mean([vertices[first : last + 1, 2].mean() for first, last in _EYEBALLS])
        keep = (part >= 0) & ((part != TEETH) | front_teeth)
        keep &= (part != EYE) | (depth > eye_center + EYEBALL_DEPTH_KEPT)
        keep &= (part != GUMS) | (depth > 4.5)
        return triangles[keep]

    def _iris_distance(self, used: np.ndarray) -> np.ndarray:
        """Distance (cm) of eyeball vertices from the optical axis."""
        distance = np.zeros(len(self.vertices), np.float32)
        for first, last in _EYEBALLS:
            eye = (used >= first) & (used <= last)
            points = self.vertices[eye]
            center = (points[:, :2].min(0) + points[:, :2].max(0)) / 2
            distance[eye] = np.hypot(*(points[:, :2] - center).T)
        return distance

    def _signed_distance(self, outline: np.ndarray) -> np.ndarray:
        """Distance (cm) to a polygon in the frontal plane, positive inside."""
        outline = np.ascontiguousarray(outline, np.float32)
        points = self.vertices[:, :2].astype(float)
        return np.array([cv2.pointPolygonTest(outline, tuple(p), True) for p in points], np.float32)

    def _lip_distance(self) -> np.ndarray:
        x, y, z = self.vertices.T
        near = (self.part == SKIN) & (z > 6) & (np.abs(x) < 3.2) & (np.abs(y + 3.4) < 1.6)
        outline = self.vertices[self.landmarks[48:60], :2]
        return np.where(near, self._signed_distance(outline), -9.0).astype(np.float32)

    def _beard_masks(self) -> np.ndarray:
        """(V, 3) in 0 to 1: full beard, moustache, goatee."""
        x, y, z = self.vertices.T
        half = [[8, 1.5], [6.3, -0.2], [4.6, -2.3], [3.0, -2.6], [1.5, -1.65], [0, -1.75]]
        outline = half + [[-a, b] for a, b in half[-2::-1]] + [[-9, -9.3], [0, -9.6], [9, -9.3]]
        inside = smoothstep(-0.15, 0.9, self._signed_distance(np.array(outline)))
        full = np.where((self.part == SKIN) & (z > 1.2 - 0.25 * (y + 2)), inside, 0.0)
        full *= 1 - smoothstep(-0.35, 0.05, self.lip_distance)
        full *= smoothstep(-9.6, -8.0, y + (10 - z) * 0.35 * (z < 10))
        moustache = full * smoothstep(3.4, 2.4, np.abs(x)) * smoothstep(-3.6, -3.0, y)
        goatee = full * smoothstep(3.0, 2.0, np.abs(x)) * smoothstep(4, 6, z)
        return np.stack([full, moustache, goatee], 1).astype(np.float32)

    def _scalp_lookup(self):
        self._scalp = np.where((self.part == SKIN) & (self.vertices[:, 1] > -5))[0]
        offset = self.vertices[self._scalp] - SCALP_CENTER
        self._scalp_radius = np.linalg.norm(offset, axis=1)
        self._scalp_tree = cKDTree(offset / self._scalp_radius[:, None])

    def scalp(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Radius of the mean head in unit directions (N, 3), and the vertices (N, 8) and weights (N, 8) it came from."""
        distance, nearest = self._scalp_tree.query(directions, k=8)
        weights = 1.0 / (distance + 0.02) ** 2
        weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        return (self._scalp_radius[nearest] * weights).sum(1), self._scalp[nearest], weights

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        return vertex_normals(vertices, self.triangles, self._incidence)[self._seam_group].astype(np.float32)

    def shaped(self, shape: np.ndarray) -> np.ndarray:
        """Neutral vertices (V, 3) of shape coefficients (up to 100)."""
        return self.vertices + np.tensordot(np.asarray(shape, np.float32), self.identity[: len(shape)], 1)

    def expression_offset(self, expression: np.ndarray) -> np.ndarray:
        """Displacement (V, 3) of expression coefficients (53,); rows at zero cost nothing."""
        active = np.flatnonzero(expression)
        return np.tensordot(np.asarray(expression, np.float32)[active], self.expression[active], 1)
