"""Hair: a shell grown from the scalp, covered with locks, in a handful of styles.

A style is laid out in directions from `SCALP_CENTER`: azimuth `phi` (0 at the face, positive to the person's left) and
polar angle `theta` (0 at the crown). The shell's columns run from the crown to the hairline and, where hair is long,
hang from there. Locks are ribbons that follow the columns, each with its own length and brightness, so that
edges fray and the surface shines in streaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.ndimage import gaussian_filter, map_coordinates

from .face_model import SCALP_CENTER, FaceModel, smoothstep, vertex_incidence, vertex_normals


COLUMNS, ROWS, GROWN_ROWS = 64, 30, 20
LOCK_POINTS = 7
BALL_GRID = (20, 12)
_AZIMUTHS = [0, 25, 50, 68, 80, 92, 105, 125, 150, 180]


@dataclass
class HairShape:
    """Lengths in cm, angles in degrees."""

    front: float = 50.0  # polar angle of the hairline above the forehead,
    peak: float = 0.0  # how much lower it is at 25 degrees to the sides,
    side: float = 90.0  # and its polar angle above the ears
    thickness: float = 0.5
    top: float = 0.5  # more thickness on the top,
    quiff: float = 0.0  # above the forehead,
    sides: float = 0.0  # at the sides,
    back: float = 0.1  # and at the back
    parting: float | None = None  # x of the parting's direction, -0.5 to 0.5
    sweep: float = 0.0  # lower hairline on one side of the forehead
    bangs: float = 0.0  # how far hair falls over the forehead
    blunt: float = 0.3  # 0: the shell thins out to its edge, 1: it ends with its thickness
    length: float = 0.0  # how far hair hangs below the hairline
    opening: float = 66.0  # azimuth from which it hangs
    flare: float = 0.0
    tuck: float = 0.0
    wave: float = 0.0
    curl: float = 0.0  # height of bumps
    lock_count: int = 620
    lock_width: float = 0.55
    lock_lift: float = 0.22
    lock_curl: float = 0.0  # radius of ringlets
    bun: float = 0.0  # radius of a bun on the crown
    phase: float = 0.0


@dataclass
class HairMesh:
    """Triangles over vertices in the mean head's space, tied to the scalp so that they follow a person's shape."""

    vertices: np.ndarray
    triangles: np.ndarray
    bound_to: np.ndarray
    weights: np.ndarray
    brightness: np.ndarray
    tip: np.ndarray  # 0 at the root, 1 at the end
    lock_cell: np.ndarray  # the shell vertex under every vertex of a lock
    ball_incidence: scipy.sparse.csr_matrix | None

    def fitted(self, displacement: np.ndarray) -> np.ndarray:
        """Vertices after the head's vertices moved by `displacement` (V, 3)."""
        return self.vertices + (displacement[self.bound_to] * self.weights[..., None]).sum(1)

    def frames(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Normals and tangents (N, 3). Locks take the normals of the shell beneath them, so that they shade as one."""
        shell = COLUMNS * ROWS
        lock_end = shell + len(self.lock_cell)
        normals, tangents = np.zeros_like(vertices), np.zeros_like(vertices)
        normals[:shell] = _shell_normals(vertices[:shell])
        tangents[:shell] = np.gradient(vertices[:shell].reshape(COLUMNS, ROWS, 3), axis=1).reshape(-1, 3)
        normals[shell:lock_end] = normals[self.lock_cell]
        locks = vertices[shell:lock_end].reshape(-1, LOCK_POINTS, 2, 3)
        tangents[shell:lock_end] = np.gradient(locks, axis=1).reshape(-1, 3)
        if self.ball_incidence is not None:
            ball = vertices[lock_end:]
            normals[lock_end:] = vertex_normals(ball, _BALL_TRIANGLES, self.ball_incidence)
            tangents[lock_end:] = np.cross(normals[lock_end:], [0.3, 1.0, 0.2])
        return normals, tangents / (np.linalg.norm(tangents, axis=1, keepdims=True) + 1e-6)


def hairline(front: float, peak: float, side: float, azimuth: np.ndarray) -> np.ndarray:
    """Polar angle (degrees) of the hairline at absolute azimuths (degrees)."""
    angles = [front, front + peak, front + 12, side - 8, side + 4, side + 2, 102, 118, 126, 128]
    return np.interp(azimuth, _AZIMUTHS, angles)


def _grid_triangles(columns: int, rows: int, closed: bool) -> np.ndarray:
    i, j = np.meshgrid(np.arange(columns if closed else columns - 1), np.arange(rows - 1), indexing="ij")
    a, b = i * rows + j, (i + 1) % columns * rows + j
    return np.stack([np.stack([a, a + 1, b], -1), np.stack([b, a + 1, b + 1], -1)], 2).reshape(-1, 3).astype(np.int32)


_SHELL_TRIANGLES = _grid_triangles(COLUMNS, ROWS, closed=True)
_SHELL_INCIDENCE = vertex_incidence(np.arange(COLUMNS * ROWS), _SHELL_TRIANGLES)
_BALL_TRIANGLES = _grid_triangles(*BALL_GRID, closed=True)
_BALL_INCIDENCE = vertex_incidence(np.arange(BALL_GRID[0] * BALL_GRID[1]), _BALL_TRIANGLES)


def _directions(theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi, np.sin(theta) * np.cos(phi)], -1)


def _shell_thickness(shape: HairShape, theta: np.ndarray, phi: np.ndarray, along: np.ndarray, hangs: np.ndarray):
    """Thickness (columns, rows) of the part that covers the scalp."""
    direction = _directions(theta, phi)
    forward = np.cos(phi) * np.sin(theta)
    up = np.cos(theta)
    top = smoothstep(-0.2, 0.9, up)
    thickness = shape.thickness + shape.top * top + shape.sides * (1 - top)
    thickness += shape.quiff * smoothstep(0.1, 0.8, forward) * smoothstep(0.15, 0.7, up)
    thickness += shape.back * smoothstep(0.2, 1.0, -forward)
    if shape.parting is not None:
        line = np.exp(-(((direction[..., 0] - shape.parting) / 0.07) ** 2))
        thickness -= 0.75 * line * smoothstep(0.0, 0.5, up) * smoothstep(-0.35, 0.2, forward)
    fringe = np.exp(-((np.rad2deg(np.abs(phi)) / 60) ** 4))
    taper = 1 - smoothstep(0.75, 1.0, along) * (1 - np.clip(hangs / 2, 0, 1)) * (1 - shape.blunt * fringe)
    bumps = np.sin(7 * phi + 11 * theta + shape.phase) * np.sin(13 * theta + 5 * phi + 2 * shape.phase)
    bumps += 0.6 * np.sin(17 * phi - 9 * theta) * np.sin(21 * theta)
    return np.maximum(thickness * taper + 0.06 + shape.curl * bumps * taper, 0.05)


def _shell(model: FaceModel, shape: HairShape):
    """Shell vertices (columns, rows, 3) and their ties to the scalp."""
    phi = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)
    azimuth = np.rad2deg(np.abs(phi))
    edge = hairline(shape.front, shape.peak, shape.side, azimuth)
    edge = edge + shape.sweep * np.sin(phi) * np.exp(-((azimuth / 45) ** 2))
    edge = edge + shape.bangs * np.exp(-((azimuth / 50) ** 4))
    edge = gaussian_filter(edge, 1.0, mode="wrap")
    open_weight = smoothstep(shape.opening - 14, shape.opening + 10, azimuth)
    hangs = shape.length * open_weight
    long = shape.length > 0.3
    if long:
        edge = edge + (86 - edge) * open_weight
    rows = GROWN_ROWS if long else ROWS
    along = np.linspace(0, 1, rows)[None]
    theta = np.deg2rad(edge[:, None] * along)
    column = phi[:, None]
    directions = _directions(theta, column)
    radius, bound, weights = model.scalp(directions.reshape(-1, 3))
    radius = gaussian_filter(radius.reshape(COLUMNS, rows), [1.2, 0.8], mode=["wrap", "nearest"])
    radius += _shell_thickness(shape, theta, column, along, hangs[:, None])
    points = SCALP_CENTER + directions * radius[..., None]
    bound, weights = bound.reshape(COLUMNS, rows, -1), weights.reshape(COLUMNS, rows, -1)
    if long:
        extra = ROWS - rows
        step = np.linspace(0, 1, extra + 1)[1:][None]
        out = np.stack([np.sin(phi), 0 * phi, np.cos(phi)], -1)
        drop = hangs[:, None] * step
        swing = 0.12 * shape.flare * np.sin(step * np.pi * 0.9) * hangs[:, None]
        swing = swing - 0.16 * shape.tuck * step**2 * np.minimum(hangs, 9)[:, None]
        swing = swing + shape.wave * np.sin(0.9 * drop + 2 * column) * np.clip(hangs[:, None] / 6, 0, 1)
        hanging = points[:, -1:] + out[:, None] * swing[..., None]
        hanging[..., 1] -= drop
        points = np.concatenate([points, hanging], 1)
        bound = np.concatenate([bound, np.repeat(bound[:, -1:], extra, 1)], 1)
        weights = np.concatenate([weights, np.repeat(weights[:, -1:], extra, 1)], 1)
    return points, bound, weights, hangs


def _sample_grid(grid: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear values of a (columns, rows, C) grid, periodic in columns."""
    wrapped = np.concatenate([grid, grid[:1]], 0)
    at = [np.mod(column, COLUMNS), np.clip(row, 0, ROWS - 1)]
    return np.stack([map_coordinates(wrapped[..., c], at, order=1) for c in range(grid.shape[-1])], -1)


def _locks(shape: HairShape, points: np.ndarray, normals: np.ndarray, hangs: np.ndarray, rng: np.random.Generator):
    """Ribbons along the shell: vertices (L, LOCK_POINTS, 2, 3), their (column, row) cells and brightness (L,)."""
    count = shape.lock_count
    column = rng.uniform(0, COLUMNS, count)
    reach = rng.uniform(0.35, 0.75, count) if not shape.lock_curl else rng.uniform(0.12, 0.25, count)
    end = np.where(rng.random(count) < 0.5, rng.uniform(0.9, 1.0, count), rng.uniform(0.4, 1.0, count))
    if shape.lock_curl:
        end = rng.uniform(0.15, 1.0, count)
    start = np.maximum(end - reach, 0.02)
    t = np.linspace(0, 1, LOCK_POINTS)
    row = (start[:, None] + (end - start)[:, None] * t) * (ROWS - 1)
    drift = rng.normal(0, 0.9, count)[:, None] * t + 0.35 * np.sin(3 * t + rng.uniform(0, 6, count)[:, None])
    col = column[:, None] + drift
    center = _sample_grid(points, col, row)
    normal = _sample_grid(normals, col, row)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
    lift = shape.lock_lift * rng.uniform(0.2, 1.0, count)[:, None] * np.sin(np.pi * np.clip(t, 0.08, 0.85)) + 0.02
    center = center + normal * lift[..., None]
    tangent = np.gradient(center, axis=1)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True) + 1e-9
    across = np.cross(tangent, normal)
    if shape.lock_curl:
        turn = rng.uniform(5, 8, count)[:, None] * t + rng.uniform(0, 6, count)[:, None]
        ring = np.sin(turn)[..., None] * across + (np.cos(turn) + 0.6)[..., None] * normal
        center = center + shape.lock_curl * rng.uniform(0.6, 1.2, count)[:, None, None] * ring
    # the last points of a lock run past the shell's edge, which frays it, but not where hair is combed back
    azimuth = np.abs(np.mod(column / COLUMNS, 1.0) - 0.5) * 360
    combed = np.clip(1 - shape.blunt, 0, 1) * (azimuth < 75)
    over = np.clip(end - 0.9, 0, 0.1)[:, None] * 10 * np.clip(t - 0.6, 0, 1) * rng.uniform(0.3, 2.2, count)[:, None]
    over *= (1 - combed)[:, None]
    center = center + tangent * over[..., None]
    width = shape.lock_width * rng.uniform(0.6, 1.3, count)[:, None] * np.sqrt(np.clip(1.02 - t**3, 0.02, 1)) * 0.5
    side = across * width[..., None]
    return np.stack([center - side, center + side], 2), np.stack([col, row], -1), rng.normal(0, 1, count)


def _bun(shape: HairShape, rng: np.random.Generator):
    """A knot behind the crown: a ball with a groove that winds about it."""
    columns, rows = BALL_GRID
    phi = np.linspace(-np.pi, np.pi, columns, endpoint=False)[:, None]
    theta = np.broadcast_to(np.linspace(0, np.pi, rows), BALL_GRID)
    direction = _directions(theta, phi)
    radius = shape.bun * (1 + 0.07 * np.sin(5 * theta + 3 * phi + shape.phase) + 0.03 * np.sin(11 * phi))
    anchor = SCALP_CENTER + np.array([0, np.cos(0.15), -np.sin(0.15)]) * (9.7 + 0.62 * shape.bun)
    points = anchor + direction * radius[..., None] * np.array([1.1, 0.85, 1.0])
    return points.reshape(-1, 3), rng.normal(0, 0.5, columns * rows)


def _shell_normals(vertices: np.ndarray) -> np.ndarray:
    """Unit normals, leaning outward: the shell is folded flat where nothing hangs."""
    normals = vertex_normals(vertices, _SHELL_TRIANGLES, _SHELL_INCIDENCE)
    outward = vertices - SCALP_CENTER
    outward[:, 1] = np.maximum(outward[:, 1], 0)
    normals = normals + 0.4 * outward / np.linalg.norm(outward, axis=1, keepdims=True)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def build_hair(model: FaceModel, shape: HairShape, rng: np.random.Generator) -> HairMesh:
    """The mesh of a style on the mean head."""
    points, bound, weights, hangs = _shell(model, shape)
    normals = _shell_normals(points.reshape(-1, 3)).reshape(points.shape)
    locks, cells, lock_brightness = _locks(shape, points, normals, hangs, rng)
    count = len(locks)
    nearest = (np.mod(np.round(cells[..., 0]), COLUMNS) * ROWS + np.clip(np.round(cells[..., 1]), 0, ROWS - 1)).astype(
        int
    )
    nearest = np.repeat(nearest.reshape(-1), 2)
    flat_bound, flat_weights = bound.reshape(COLUMNS * ROWS, -1), weights.reshape(COLUMNS * ROWS, -1)
    ribbon = _grid_triangles(LOCK_POINTS, 2, closed=False)
    offset = (np.arange(count) * LOCK_POINTS * 2)[:, None, None] + COLUMNS * ROWS
    lock_tip = np.broadcast_to(np.linspace(0, 1, LOCK_POINTS)[None, :, None], (count, LOCK_POINTS, 2))
    vertices = [points.reshape(-1, 3), locks.reshape(-1, 3)]
    triangles = [_SHELL_TRIANGLES, (ribbon[None] + offset).reshape(-1, 3)]
    ties = [(flat_bound, flat_weights), (flat_bound[nearest], flat_weights[nearest])]
    brightness = [np.full(COLUMNS * ROWS, -0.6), np.repeat(lock_brightness, LOCK_POINTS * 2)]
    tip = [np.tile(np.linspace(0, 1, ROWS), COLUMNS), lock_tip.ravel()]
    if shape.bun:
        ball, ball_brightness = _bun(shape, rng)
        triangles.append(_BALL_TRIANGLES + sum(map(len, vertices)))
        vertices.append(ball)
        crown = np.zeros(len(ball), int)
        ties.append((flat_bound[crown], flat_weights[crown]))
        brightness.append(ball_brightness)
        tip.append(np.full(len(ball), 0.5))
    return HairMesh(
        vertices=np.concatenate(vertices).astype(np.float32),
        triangles=np.concatenate(triangles).astype(np.int32),
        bound_to=np.concatenate([b for b, _ in ties]),
        weights=np.concatenate([w for _, w in ties]).astype(np.float32),
        brightness=np.concatenate(brightness).astype(np.float32),
        tip=np.concatenate(tip).astype(np.float32),
        lock_cell=nearest,
        ball_incidence=_BALL_INCIDENCE if shape.bun else None,
    )
