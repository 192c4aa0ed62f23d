"""The renderer of synthetic people: geometry against closed forms, determinism, captions."""

import numpy as np
import pytest


pytest.importorskip("scipy", reason="the renderer needs scipy")
pytest.importorskip("cv2", reason="the renderer needs opencv")
pytest.importorskip("moderngl", reason="the renderer needs moderngl")

from dataset import SEED, SPLITS, TURNED, VIEWS
from people.captions import DIRECTIONS, caption, scene_clauses, vocabulary
from people.face_model import rotation_matrix
from people.renderer import CAMERA_DISTANCE
from people.sampling import EXPRESSIONS, HAIR_STYLES, sample_person, sample_scene
from people.turning import FURTHEST
from render import scene_of


pytestmark = pytest.mark.slow


def render(renderer, person, view, seed=3):
    scene = sample_scene(seed, person, view, renderer.model.expression_index)
    return scene, renderer.render(sample_person(seed, person), scene)


def test_landmarks_are_the_morphable_models(renderer, ict_model):
    """Landmarks from the source's own arrays, coefficients, angles and a pinhole camera."""
    data = np.load(ict_model)
    names = [str(name) for name in data["expression_names"]]
    for i in range(4):
        person = sample_person(3, i)
        scene, portrait = render(renderer, i, 0)
        at = data["landmarks72"]
        points = data["vertices"][at].astype(np.float64)
        points += np.einsum("k,kvc->vc", person.shape, data["identity"][:, at].astype(np.float64))
        assert names == list(renderer.model.expression_index)
        points += np.einsum("k,kvc->vc", scene.expression, data["expression"][:, at].astype(np.float64))
        pivot = np.array([0.0, -7.0, 1.0])
        points = (points - pivot) @ rotation_matrix(scene.yaw, scene.pitch, scene.roll).astype(float).T + pivot
        np.testing.assert_allclose(portrait.landmarks_3d, points, atol=2e-3)
        focal = CAMERA_DISTANCE / (CAMERA_DISTANCE - points[:, 2])
        pixels = 64 + 64 * (points[:, :2] - scene.camera[:2]) * focal[:, None] / scene.camera[2] * [1, -1]
        np.testing.assert_allclose(portrait.landmarks, pixels, atol=0.02)


def test_picture_is_where_the_landmarks_say(renderer):
    """Irises are dark: the darkest spot of an open eye lies within its landmarks."""
    person = sample_person(3, 0)
    person.glasses, person.eye_color, person.lashes = None, np.zeros(3, np.float32), 0.0
    person.skin_color = np.array([0.7, 0.55, 0.45], np.float32)
    scene = sample_scene(3, 0, 0, renderer.model.expression_index)
    scene.expression = np.zeros(53, np.float32)
    scene.expression[renderer.model.expression_index["eyeWide_L"]] = 1
    scene.expression[renderer.model.expression_index["eyeWide_R"]] = 1
    for yaw, pitch in ((0, 0), (20, 5), (-20, -5)):
        scene.yaw, scene.pitch = yaw, pitch
        portrait = renderer.render(person, scene)
        for eye in (slice(36, 42), slice(42, 48)):
            low, high = portrait.landmarks[eye].min(0), portrait.landmarks[eye].max(0)
            center = (low + high) / 2
            x, y = center.astype(int)
            window = portrait.image[y - 8 : y + 9, x - 8 : x + 9].astype(int).sum(-1)
            dark = np.argwhere(window <= np.sort(window.ravel())[8]).mean(0)[::-1] + np.array([x - 8, y - 8])
            assert np.all(dark > low - 1)
            assert np.all(dark < high + 1)


def test_angles_turn_the_head_the_documented_way():
    nose = np.array([0.0, 0.0, 1.0])
    assert (rotation_matrix(30, 0, 0) @ nose)[0] == pytest.approx(0.5, abs=1e-6)  # to the person's left
    assert (rotation_matrix(0, 30, 0) @ nose)[1] == pytest.approx(-0.5, abs=1e-6)  # down
    up = rotation_matrix(0, 0, 30) @ np.array([0.0, 1.0, 0.0])
    assert up[0] == pytest.approx(-0.5, abs=1e-6)  # the crown toward the person's right


def test_pictures_are_functions_of_the_seed(renderer):
    _, first = render(renderer, 5, 1)
    render(renderer, 6, 0)
    _, again = render(renderer, 5, 1)
    np.testing.assert_array_equal(first.image, again.image)
    _, other = render(renderer, 5, 2)
    assert np.abs(first.image.astype(int) - other.image).mean() > 5


def test_half_of_the_training_people_turn_further_and_keep_their_place(renderer):
    index = renderer.model.expression_index
    assert set(TURNED) < set(SPLITS["train"])
    reached = {}
    for number in range(60):
        person, view = TURNED[number], number % VIEWS
        plain, scene = sample_scene(SEED, person, view, index), scene_of(person, view, index)
        other = {name for name in FURTHEST if getattr(plain, name) != getattr(scene, name)}
        assert len(other) == (view + 1) % 2
        for name in other:
            reached[name] = max(reached.get(name, 0), abs(getattr(scene, name)) / FURTHEST[name])
        if number % 15 == 0:
            middles = [renderer.render(sample_person(SEED, person), s).landmarks.mean(0) for s in (plain, scene)]
            np.testing.assert_allclose(*middles, atol=6)  # pixels of 128
    assert all(0.8 < share <= 1 for share in reached.values())
    for person in (SPLITS["test"][0], SPLITS["train"][0]):
        plain, scene = sample_scene(SEED, person, 0, index), scene_of(person, 0, index)
        assert (plain.yaw, plain.pitch, plain.roll) == (scene.yaw, scene.pitch, scene.roll)


def test_every_style_and_expression_renders(renderer):
    seen = set()
    for i in range(120):
        person = sample_person(11, i)
        if person.hair_style not in seen:
            seen.add(person.hair_style)
            scene = sample_scene(11, i, 0, renderer.model.expression_index)
            image = renderer.render(person, scene).image
            # the background shows in the upper corner, somebody stands in the middle
            corner = scene.background * 255
            assert np.abs(image[2, 2] - corner).max() < 60
            assert np.abs(image[40:100, 40:90] - corner).mean() > 15
    assert seen == set(HAIR_STYLES)


def test_captions_use_only_the_vocabulary_and_all_of_it(renderer):
    words = set(vocabulary())
    rng, said = np.random.default_rng(0), set()
    for i in range(400):
        attributes = sample_person(1, i).attributes
        for j in range(5):
            scene = sample_scene(1, i, j, renderer.model.expression_index)
            text = caption(attributes | scene.attributes, mirrored=bool(j % 2), rng=rng)
            said |= set(text.replace(",", " , ").split())
    assert said == words


def test_mirrored_captions_swap_left_and_right_only():
    attributes = {"expression": EXPRESSIONS[0], "shirt": "red", "background": "blue"}
    swapped = dict(zip(DIRECTIONS, DIRECTIONS)) | {"looking left": "looking right", "looking right": "looking left"}
    for direction in DIRECTIONS:
        plain = scene_clauses(attributes | {"direction": direction})
        mirrored = scene_clauses(attributes | {"direction": direction}, mirrored=True)
        assert mirrored[1] == swapped[direction]
        assert plain[1] == direction
        assert plain[:1] + plain[2:] == mirrored[:1] + mirrored[2:]


def test_looking_right_is_toward_the_right_of_the_picture(renderer):
    """The nose moves to the side that the caption names."""
    person = sample_person(3, 0)
    for j in range(40):
        scene = sample_scene(3, 0, j, renderer.model.expression_index)
        points = renderer.render(person, scene).landmarks
        nose = (points[30] - (points[0] + points[16]) / 2)[0]
        if scene.direction == "looking right":
            assert nose > 0
        if scene.direction == "looking left":
            assert nose < 0
