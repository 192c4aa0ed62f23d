"""Renders a person in a scene with OpenGL (EGL; Mesa's software rasteriser will do)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import cv2
import moderngl
import numpy as np

from . import shaders
from .face_model import (
    EYE,
    FRAME,
    GUMS,
    HAIR,
    IRIS_RADIUS,
    MOUTH,
    NECK_PIVOT,
    SCALP_CENTER,
    SHIRT,
    SKIN,
    SOCKET,
    TEETH,
    FaceModel,
    rotation_matrix,
    smoothstep,
)
from .glasses import build_glasses
from .hair import HairMesh, build_hair, hairline
from .sampling import Person, Scene


CAMERA_DISTANCE = 75.0
SHADOW_SIZE = 256
SUPERSAMPLING = 2
_FLOATS = 15  # position, normal, surface_a, surface_b, part
_COLOR_LAYOUT = ("3f 3f 4f 4f 1f", "position", "normal", "surface_a", "surface_b", "part")
_LIGHT_EXTENT, _LIGHT_DEPTH = 24.0, 34.0
_UPPER_LIDS = [36, 68, 37, 38, 39, 42, 43, 44, 70, 45]


@dataclass
class Portrait:
    """A rendered view.

    Attributes:
        image: (size, size, 3) uint8, RGB.
        landmarks: (72, 2) pixels, x right, y down, the image spanning 0 to `size`.
        landmarks_3d: (72, 3) cm in the camera's axes: x right in the image, y up, z toward the camera.
        coverage: (size, size) uint8, how much of each pixel the person covers: 0 background, 255 all.
    """

    image: np.ndarray
    landmarks: np.ndarray
    landmarks_3d: np.ndarray
    coverage: np.ndarray


@dataclass
class _Body:
    """A person's geometry before expression and pose."""

    vertices: np.ndarray  # with the beard's thickness
    bare: np.ndarray  # without
    beard: np.ndarray
    scalp: np.ndarray
    hair: HairMesh | None
    hair_vertices: np.ndarray | None
    hair_normals: np.ndarray | None
    hair_tangents: np.ndarray | None
    glasses: tuple | None


def project(points: np.ndarray, camera: np.ndarray, size: int) -> np.ndarray:
    """Pixels (N, 2) of points (N, 3) in cm under a scene's `camera`."""
    depth = (CAMERA_DISTANCE - points[:, 2]) / CAMERA_DISTANCE
    x = (points[:, 0] - camera[0]) / camera[2] / depth
    y = (points[:, 1] - camera[1]) / camera[2] / depth
    return np.stack([(0.5 + 0.5 * x) * size, (0.5 - 0.5 * y) * size], 1).astype(np.float32)


def pose_points(points: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    return (points - NECK_PIVOT) @ rotation.T + NECK_PIVOT


def background(scene: Scene, size: int) -> np.ndarray:
    """What a scene has behind the person, (size, size, 3) in 0 to 1."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1.0)
    light = 1 + scene.gradient * (0.5 - y) - 0.25 * ((x - 0.5) ** 2 + (y - 0.45) ** 2)
    return np.clip(scene.background * light[..., None], 0, 1)


def _light_matrix(direction: np.ndarray) -> np.ndarray:
    """Maps cm to the clip space of a distant light."""
    up = np.array([0, 1.0, 0]) if abs(direction[1]) < 0.95 else np.array([1.0, 0, 0])
    x = np.cross(up, direction)
    x /= np.linalg.norm(x)
    y = np.cross(direction, x)
    return np.stack([x / _LIGHT_EXTENT, y / _LIGHT_EXTENT, -direction / _LIGHT_DEPTH]).astype(np.float32)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / (np.linalg.norm(v, axis=-1, keepdims=True) + 1e-9)


class Renderer:
    """Draws portraits of `size` pixels. One per process; the last person's geometry is kept between calls."""

    def __init__(self, size: int = 128, model: FaceModel | None = None):
        self.size = size
        self.model = model or FaceModel()
        os.environ.setdefault("LP_NUM_THREADS", "0")
        self.context = moderngl.create_context(standalone=True, backend="egl")
        self._compile()
        self._allocate()
        self._occlusion = self._ambient_occlusion()
        self._person, self._body = None, None

    def _compile(self):
        values = {
            "SKIN": SKIN,
            "MOUTH": MOUTH,
            "SOCKET": SOCKET,
            "GUMS": GUMS,
            "TEETH": TEETH,
            "EYE": EYE,
            "HAIR": HAIR,
            "FRAME": FRAME,
        }
        values.update(IRIS_RADIUS=IRIS_RADIUS, SHADOW_SIZE=float(SHADOW_SIZE))
        defines = "".join(f"#define {name} {value}\n" for name, value in values.items())
        version = "#version 330\n"

        def program(more: str = "") -> moderngl.Program:
            fragment = shaders.FRAGMENT.replace(version, version + defines + more)
            return self.context.program(vertex_shader=shaders.VERTEX, fragment_shader=fragment)

        self._program, self._shirt_program = program(), program("#define DRAWS_SHIRT\n")
        self._depth_program = self.context.program(
            vertex_shader=shaders.DEPTH_VERTEX, fragment_shader=shaders.DEPTH_FRAGMENT
        )

    def _allocate(self):
        model, gl = self.model, self.context
        pixels = self.size * SUPERSAMPLING
        self._target = gl.framebuffer([gl.renderbuffer((pixels, pixels), 4)], gl.depth_renderbuffer((pixels, pixels)))
        self._shadow = gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self._shadow.compare_func = "<="
        self._shadow.filter = (moderngl.LINEAR, moderngl.LINEAR)
        self._shadow.repeat_x = self._shadow.repeat_y = False
        self._shadow_target = gl.framebuffer(depth_attachment=self._shadow)
        # the shirt is a second, thicker skin over the trunk
        self._trunk = np.flatnonzero((model.part == SKIN) & (model.vertices[:, 1] < -7.5))
        place = np.full(len(model.vertices), -1)
        place[self._trunk] = np.arange(len(self._trunk)) + len(model.vertices)
        shirt = place[model.triangles]
        shirt = shirt[(shirt >= 0).all(1)]
        self._solid_count = len(model.vertices) + len(self._trunk)
        self._solid = np.zeros((self._solid_count, _FLOATS), np.float32)
        self._static_attributes()
        self._solid_mesh = self._mesh(self._solid_count, model.triangles)
        index = gl.buffer(shirt.astype(np.int32).tobytes())
        self._shirt = gl.vertex_array(self._shirt_program, [(self._solid_mesh["buffer"], *_COLOR_LAYOUT)], index)
        self._hair_mesh = self._glasses_mesh = None

    def _mesh(self, vertex_count: int, triangles: np.ndarray) -> dict:
        gl = self.context
        buffer = gl.buffer(reserve=vertex_count * _FLOATS * 4, dynamic=True)
        index = gl.buffer(np.ascontiguousarray(triangles, np.int32).tobytes())
        return {
            "buffer": buffer,
            "index": index,
            "color": gl.vertex_array(self._program, [(buffer, *_COLOR_LAYOUT)], index),
            "depth": gl.vertex_array(self._depth_program, [(buffer, f"3f {_FLOATS * 4 - 12}x", "position")], index),
        }

    @staticmethod
    def _release(mesh: dict | None):
        for item in (mesh or {}).values():
            item.release()

    def _static_attributes(self):
        model, count = self.model, len(self.model.vertices)
        solid = self._solid
        solid[:count, 6:9] = model.vertices
        solid[count:, 6:9] = model.vertices[self._trunk]
        solid[:count, 10] = np.where(model.part == EYE, model.iris_distance, model.lip_distance)
        solid[:count, 14] = model.part
        solid[count:, 14] = SHIRT

    def _uniform(self, name: str, value):
        data = np.ascontiguousarray(value, np.float32).tobytes()
        for program in (self._program, self._shirt_program):
            if name in program:
                program[name].write(data)

    def _draw_shadow(self, light: np.ndarray, meshes: list[dict]):
        self._shadow_target.use()
        self._shadow_target.clear(depth=1.0)
        self.context.enable(moderngl.DEPTH_TEST)
        self._depth_program["light_matrix"].write(light.T.astype("f4").tobytes())
        for mesh in meshes:
            mesh["depth"].render()

    def _ambient_occlusion(self) -> np.ndarray:
        """Cosine-weighted share of the upper sky that every vertex of the mean head sees, by shadow maps."""
        model, rng = self.model, np.random.default_rng(1)
        count = len(model.vertices)
        normals = model.normals(model.vertices)
        self._solid[:count, :3] = model.vertices
        self._solid[count:, :3] = model.vertices[self._trunk]
        self._solid_mesh["buffer"].write(self._solid.tobytes())
        seen, total = np.zeros(count), np.zeros(count)
        directions = _unit(rng.normal(size=(160, 3)))
        for direction in directions[directions[:, 1] > -0.75]:
            light = _light_matrix(direction)
            self._draw_shadow(light, [self._solid_mesh])
            depth = np.frombuffer(self._shadow.read(), np.float32).reshape(SHADOW_SIZE, SHADOW_SIZE) * 2 - 1
            clip = model.vertices @ light.T
            x, y = np.clip(((clip[:, :2] * 0.5 + 0.5) * SHADOW_SIZE).astype(int), 0, SHADOW_SIZE - 1).T
            cosine = np.clip(normals @ direction, 0, None)
            seen += cosine * (clip[:, 2] < depth[y, x] + 0.018)
            total += cosine
        return np.clip(seen / np.maximum(total, 1e-3), 0.12, 1).astype(np.float32)

    def _build(self, person: Person) -> _Body:
        model = self.model
        bare = model.shaped(person.shape)
        beard = np.clip(model.beard_masks @ person.beard_mix, 0, 1).astype(np.float32)
        vertices = bare + model.normals(bare) * (beard * person.beard_length)[:, None]
        # the scan ends at the shoulders: spread what is left
        low = np.clip(-11.5 - model.vertices[:, 1], 0, None)
        vertices[:, 0] *= 1 + 0.055 * low
        vertices[:, 1] -= 0.5 * low
        body = _Body(vertices, bare, beard, self._scalp_mask(person), None, None, None, None, None)
        if person.glasses is not None:
            body.glasses = build_glasses(person.glasses, bare[model.landmarks])
        if person.hair is not None:
            self._build_hair(person, body)
        return body

    def _build_hair(self, person: Person, body: _Body):
        hair = build_hair(self.model, person.hair, np.random.default_rng(person.hair_seed))
        body.hair = hair
        body.hair_vertices = hair.fitted(body.bare - self.model.vertices)
        body.hair_normals, body.hair_tangents = hair.frames(body.hair_vertices)

    def _scalp_mask(self, person: Person) -> np.ndarray:
        model = self.model
        offset = model.vertices - SCALP_CENTER
        azimuth = np.rad2deg(np.abs(np.arctan2(offset[:, 0], offset[:, 2])))
        polar = np.rad2deg(np.arccos(np.clip(offset[:, 1] / np.linalg.norm(offset, axis=1), -1, 1)))
        limit = hairline(*person.hairline, 90, azimuth)
        return (smoothstep(limit + 4, limit - 5, polar) * (model.part == SKIN)).astype(np.float32)

    def _use(self, person: Person):
        if person is self._person:
            return
        self._body = body = self._build(person)
        self._person = person
        count = len(self.model.vertices)
        self._solid[:count, 11] = body.beard
        self._solid[:count, 12] = body.scalp
        self._solid[:count, 9] = self._occlusion
        self._solid[count:, 9] = self._occlusion[self._trunk]
        self._release(self._hair_mesh)
        self._release(self._glasses_mesh)
        self._hair_mesh = self._glasses_mesh = None
        if body.hair is not None:
            self._hair_mesh = self._mesh(len(body.hair_vertices), body.hair.triangles)
        if body.glasses is not None:
            self._glasses_mesh = self._mesh(len(body.glasses[0]), body.glasses[2])

    def _pose(self, scene: Scene) -> np.ndarray:
        """Uploads the posed geometry; returns the posed landmarks."""
        model, body = self.model, self._body
        rotation = rotation_matrix(scene.yaw, scene.pitch, scene.roll)
        trunk_rotation = rotation_matrix(0.25 * scene.yaw, 0, 0)
        offset = model.expression_offset(scene.expression)
        neutral = body.vertices + offset
        turned, still = pose_points(neutral, rotation), pose_points(neutral, trunk_rotation)
        weight = model.follows_head[:, None].astype(np.float32)
        posed = still + weight * (turned - still)
        normals = model.normals(posed)
        count = len(posed)
        self._solid[:count, 0:3], self._solid[:count, 3:6] = posed, normals
        depth = smoothstep(0, 4, scene.collar[0] - model.vertices[self._trunk, 1])[:, None]
        self._solid[count:, 0:3] = posed[self._trunk] + normals[self._trunk] * (0.3 + 0.35 * depth)
        self._solid[count:, 3:6] = normals[self._trunk]
        self._solid_mesh["buffer"].write(self._solid.tobytes())
        if self._hair_mesh:
            hair = np.zeros((len(body.hair_vertices), _FLOATS), np.float32)
            hair[:, 0:3] = pose_points(body.hair_vertices, rotation)
            hair[:, 3:6] = body.hair_normals @ rotation.T
            hair[:, 6:9] = body.hair_tangents @ rotation.T
            hair[:, 9] = 1.0
            hair[:, 10], hair[:, 11], hair[:, 14] = body.hair.brightness, body.hair.tip, HAIR
            self._hair_mesh["buffer"].write(hair.tobytes())
        if self._glasses_mesh:
            frame = np.zeros((len(body.glasses[0]), _FLOATS), np.float32)
            frame[:, 0:3] = pose_points(body.glasses[0], rotation)
            frame[:, 3:6] = body.glasses[1] @ rotation.T
            frame[:, 9], frame[:, 14] = 1.0, FRAME
            self._glasses_mesh["buffer"].write(frame.tobytes())
        return pose_points(body.bare[model.landmarks] + offset[model.landmarks], rotation)

    def _set_uniforms(self, person: Person, scene: Scene, light: np.ndarray):
        for name in ("skin_color", "lip_color", "hair_color", "brow_color", "beard_color", "eye_color", "brow_style"):
            self._uniform(name, getattr(person, name))
        for name in ("key_color", "fill_color", "ambient_color", "rim_color", "shirt_color"):
            self._uniform(name, getattr(scene, name))
        self._uniform("skin_style", person.skin_style)
        self._uniform("moles", person.moles)
        self._uniform("collar", scene.collar)
        self._uniform("paint", [person.beard_opacity, person.scalp_paint, person.lashes, person.lid_shade])
        self._uniform("key_direction", _unit(scene.key_direction))
        self._uniform("fill_direction", _unit(scene.fill_direction))
        self._uniform("frame_color", person.glasses.color if person.glasses is not None else np.zeros(3))
        flat = self.model.vertices[self.model.landmarks][:, :2]
        self._uniform("brow_points", flat[17:27])
        self._uniform("lid_points", flat[_UPPER_LIDS])
        self._uniform("light_matrix", light.T)
        self._uniform("camera_distance", [CAMERA_DISTANCE])
        x, y, half = scene.camera
        self._uniform("camera", [x, y, 1 / half])

    def render(self, person: Person, scene: Scene) -> Portrait:
        self._use(person)
        points = self._pose(scene)
        meshes = [m for m in (self._solid_mesh, self._hair_mesh, self._glasses_mesh) if m]
        light = _light_matrix(_unit(scene.key_direction))
        self._draw_shadow(light, meshes)
        self._set_uniforms(person, scene, light)
        self._target.use()
        self._target.clear(0.0, 0.0, 0.0, 0.0, depth=1.0)
        self._shadow.use(0)
        for mesh in meshes[1:]:
            mesh["color"].render()
        self.context.enable(moderngl.CULL_FACE)
        self._solid_mesh["color"].render()
        self._shirt.render()
        self.context.disable(moderngl.CULL_FACE)
        pixels = self.size * SUPERSAMPLING
        drawn = np.frombuffer(self._target.read(components=4), np.uint8).reshape(pixels, pixels, 4)[::-1]
        drawn = cv2.resize(drawn, (self.size, self.size), interpolation=cv2.INTER_AREA).astype(np.float32)
        image = drawn[..., :3] + background(scene, self.size) * (255 - drawn[..., 3:])
        image = np.clip(np.round(image), 0, 255).astype(np.uint8)
        coverage = np.round(drawn[..., 3]).astype(np.uint8)
        return Portrait(image, project(points, scene.camera, self.size), points.astype(np.float32), coverage)
