"""Spectacles as thin tubes, fitted to a face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class GlassesShape:
    width: float  # half axes of a lens, cm
    height: float
    squareness: float  # exponent of the superellipse: 2 is round
    thickness: float
    color: np.ndarray  # linear RGB


def _tube(path: np.ndarray, radius: float, closed: bool, sides: int = 5):
    """Vertices, normals and triangles of a tube along a path (P, 3)."""
    count = len(path)
    tangent = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    tangent = tangent / np.linalg.norm(tangent, axis=1, keepdims=True)
    a = np.cross(tangent, [0, 0, 1.0] if closed else [0, 1.0, 0])
    a /= np.linalg.norm(a, axis=1, keepdims=True) + 1e-9
    b = np.cross(tangent, a)
    angle = np.arange(sides) * 2 * np.pi / sides
    normal = a[:, None] * np.cos(angle)[None, :, None] + b[:, None] * np.sin(angle)[None, :, None]
    i, k = np.meshgrid(np.arange(count if closed else count - 1), np.arange(sides), indexing="ij")
    j, w = (i + 1) % count, (k + 1) % sides
    quads = [[i * sides + k, j * sides + k, i * sides + w], [i * sides + w, j * sides + k, j * sides + w]]
    triangles = np.stack([np.stack(t, -1) for t in quads], 2).reshape(-1, 3)
    return (path[:, None] + radius * normal).reshape(-1, 3), normal.reshape(-1, 3), triangles


def build_glasses(shape: GlassesShape, landmarks: np.ndarray):
    """Vertices, normals and triangles in the space of a neutral face with the 72 `landmarks` (72, 3)."""
    right, left = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
    front = max(landmarks[27, 2] + 0.25, right[2] + 1.25)
    temple = np.abs(landmarks[[0, 16], 0]).mean() + 0.5
    pieces = []
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    radius = (np.abs(cos) ** shape.squareness + np.abs(sin) ** shape.squareness) ** (-1 / shape.squareness)
    for eye in (right, left):
        side = np.sign(eye[0])
        x, y = shape.width * cos * radius, shape.height * sin * radius
        lens = np.column_stack([eye[0] + 0.15 * side + x, eye[1] - 0.2 + y, front - 0.1 * np.abs(x) * (x * side > 0)])
        pieces.append(_tube(lens, shape.thickness, closed=True))
        outer = eye[0] + side * (shape.width + 0.15)
        knee = 0.6 * outer + 0.4 * side * temple
        arm = [[outer, eye[1] + 0.15, front - 0.15], [knee, eye[1] + 0.2, front - 1.5]]
        arm += [[side * (temple + 0.1), eye[1] + 0.3, 3.6], [side * (temple + 0.1), eye[1], 1.4]]
        pieces.append(_tube(np.array(arm), shape.thickness, closed=False))
    inner = np.array([right[0] - 0.15 + shape.width, left[0] + 0.15 - shape.width])
    bridge = np.column_stack(
        [np.linspace(*inner, 5), np.full(5, right[1] + 0.3), front + 0.12 * np.array([0, 1, 1.4, 1, 0])]
    )
    pieces.append(_tube(bridge, shape.thickness, closed=False))
    starts = np.cumsum([0] + [len(v) for v, _, _ in pieces])
    triangles = np.concatenate([t + s for (_, _, t), s in zip(pieces, starts)])
    vertices, normals = (np.concatenate([p[k] for p in pieces]).astype(np.float32) for k in (0, 1))
    return vertices, normals, triangles.astype(np.int32)
