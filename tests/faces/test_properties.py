"""Whatever a caller passes: the answer is finite, or the error is one of ours, in one line."""

import io
import math
import warnings
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from input_counts import ALL, report

from facesnap_diffusers import Expression, Face, FaceSnapError, HeadPose
from facesnap_diffusers.faces.alignment import align_face, align_for_clip
from facesnap_diffusers.faces.choice import FaceChoice
from facesnap_diffusers.faces.drawing import draw_landmarks
from facesnap_diffusers.faces.expression import EXPRESSION_NAMES, PRESETS
from facesnap_diffusers.faces.key_points import draw_key_points
from facesnap_diffusers.faces.photo import load_photo
from facesnap_diffusers.faces.placing import check_face_box


pytestmark = pytest.mark.slow


class Hostile:
    """Answers nothing that is asked of it."""

    def __float__(self):
        raise RuntimeError("no\nnumber")

    __index__ = __repr__ = __len__ = __iter__ = __array__ = __float__


HUGE = st.one_of(
    st.sampled_from([10**400, -(10**400), 2**63, 2**1024]),
    st.builds(pow, st.just(10), st.just(5000)),  # too long for Python to print
)
NUMBERS = st.one_of(st.floats(), st.integers(), HUGE, st.floats(0, 1), st.booleans())
TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["\0", "x" * 5000, "~", "~nobody_of_that_name", "data:", "http://", *PRESETS]),
)
SCALARS = st.one_of(
    NUMBERS,
    TEXTS,
    st.none(),
    st.binary(max_size=30),
    st.complex_numbers(),
    st.builds(Hostile),
    st.sampled_from(
        [np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(0.25), torch.tensor([1, 2]), np.nan, object, len]
    ),
)
THINGS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(TEXTS, st.sampled_from(EXPRESSION_NAMES), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
ARRAYS = hnp.arrays(
    st.one_of(
        hnp.floating_dtypes(),
        hnp.integer_dtypes(),
        hnp.boolean_dtypes(),
        hnp.complex_number_dtypes(),
        st.just(np.dtype(object)),
    ),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=20),
)


def many(examples):
    """All of these with `make test-inputs`, a fifth in every run."""
    return settings(
        max_examples=examples if ALL else examples // 5,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


OUTCOMES = Counter()


@pytest.fixture(autouse=True)
def outcomes(request):
    OUTCOMES.clear()
    yield
    kind = "damaged photos" if request.node.name == "test_damaged_files" else "public arguments of faces and photos"
    report(kind, OUTCOMES["typed"], OUTCOMES["taken"])


def answer(call):
    """What a call gives, or `None` where it refuses in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call()
        except FaceSnapError as error:
            message = str(error)
            assert message and "\n" not in message and len(message) < 600
            OUTCOMES["typed"] += 1
            return None
    OUTCOMES["taken"] += 1
    return result


def assert_finite(value):
    if isinstance(value, HeadPose):
        assert all(map(math.isfinite, value.as_tuple()))
    elif isinstance(value, Expression):
        assert all(0 <= weight <= 1 for weight in value.weights.values())
    elif isinstance(value, (list, tuple)):
        for item in value:
            assert_finite(item)
    elif isinstance(value, torch.Tensor):
        assert torch.isfinite(value).all()
    elif isinstance(value, np.ndarray):
        assert np.isfinite(value).all()


@many(500)
@given(THINGS, THINGS, THINGS)
def test_pose(yaw, pitch, roll):
    assert_finite(answer(lambda: HeadPose(yaw, pitch, roll)))


@many(500)
@given(THINGS, THINGS, THINGS)
def test_pose_methods(other, weight, count):
    pose = HeadPose(yaw=20)
    if isinstance(count, int) and 100 < count <= 100_000:
        count %= 100  # not a wrong count, only a long sequence
    other = answer(lambda: HeadPose(roll=other)) or other
    for call in (
        lambda: pose.interpolate(other, weight),
        lambda: pose.interpolate(HeadPose(), weight),
        lambda: HeadPose.turntable(3, yaw=weight, pitch=other),
        lambda: len(pose.sequence(other, count)) and None,
    ):
        assert_finite(answer(call))


@many(1000)
@given(THINGS)
def test_expression(value):
    assert_finite(answer(lambda: Expression.of(value)))


@many(500)
@given(THINGS, THINGS, THINGS)
def test_expression_methods(other, number, names):
    smile = Expression.of("smile")
    if isinstance(number, int) and 100 < number <= 100_000:
        number %= 100  # not a wrong count, only a long sequence
    for call in (
        lambda: smile.interpolate(other, number),
        lambda: smile.interpolate("sad", number),
        lambda: len(smile.sequence(other, 3)) and None,
        lambda: len(smile.sequence("sad", number)) and None,
        lambda: smile.to_vector(names),
        lambda: Expression.from_vector(other),
        lambda: Expression.from_vector(other, names),
        lambda: Expression.from_vector([number] * 53),
        lambda: smile == other and None,
    ):
        assert_finite(answer(call))


@many(200)
@given(SCALARS)
def test_expression_operators(value):
    """Python's own TypeError says that an operator does not take a type."""
    smile = Expression.of("smile")
    for call in (lambda: smile * value, lambda: value * smile, lambda: smile + value):
        try:
            assert_finite(answer(call))
        except TypeError as error:
            assert any(
                words in str(error) for words in ("unsupported operand", "multiply sequence", "not support ufuncs")
            )


@many(300)
@given(ARRAYS)
def test_expression_of_arrays(array):
    assert_finite(answer(lambda: Expression.from_vector(array)))
    assert_finite(answer(lambda: Expression.from_vector(np.resize(array, 53) if array.size else array)))


@many(1000)
@given(THINGS)
def test_photos(photo):
    image = answer(lambda: load_photo(photo))
    assert image is None or image.dtype == np.uint8


@many(600)
@given(ARRAYS)
def test_photos_of_arrays(array):
    for photo in (array, _tensor(array)):
        image = answer(lambda photo=photo: load_photo(photo))
        assert image is None or (image.dtype == np.uint8 and image.shape[2] == 3)


def _tensor(array):
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError):  # a type or byte order that tensors do not have
        return array


def _files():
    y, x = np.mgrid[:40, :56]
    image = PIL.Image.fromarray(np.stack([4 * x, 6 * y, x + y], axis=-1).astype(np.uint8))
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
        ("BMP", {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


FILES = list(_files())


@many(1500)
@given(st.data())
def test_damaged_files(data):
    content = bytearray(data.draw(st.sampled_from(FILES)))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    image = answer(lambda: load_photo(content))
    assert image is None or image.dtype == np.uint8


@many(500)
@given(THINGS)
def test_choices(value):
    for call in (
        lambda: FaceChoice.of(value),
        lambda: FaceChoice.from_left(value),
        lambda: FaceChoice.nearest_to(value, value),
        lambda: FaceChoice.most_like(value),
        lambda: check_face_box(value),
    ):
        answer(call)


@many(500)
@given(THINGS, st.sampled_from(["image", "box", "landmarks", "embedding", "score", "encoder", "key_points"]))
def test_face(value, field):
    fields = {
        "image": np.zeros((64, 64, 3), np.uint8),
        "box": np.array([10.0, 10.0, 50.0, 50.0]),
        "landmarks": np.ones((68, 2)),
        "embedding": np.ones(4),
        "score": 1.0,
        "encoder": "test/encoder",
    }
    face = answer(lambda: Face(**{**fields, field: value}))
    if face is not None:
        assert_finite([face.box, face.landmarks, face.embedding, face.five_points])
        assert math.isfinite(face.score)


POINTS = st.sampled_from([(5, 2), (68, 2), (68, 3), (72, 2), (70, 2), (5, 3), (2,), (0, 2)]).flatmap(
    lambda shape: hnp.arrays(np.float64, shape, elements=st.one_of(st.floats(-500, 500), st.floats()))
)


@many(300)
@given(POINTS, st.one_of(st.integers(-2, 100), SCALARS))
def test_crops(points, size):
    image = np.full((60, 80, 3), 100, np.uint8)
    for align in (align_face, align_for_clip):
        crop = answer(lambda align=align: align(image, points, size))
        assert crop is None or crop.shape == (size, size, 3)


@many(300)
@given(POINTS, st.one_of(st.integers(-2, 64), SCALARS), st.one_of(st.none(), SCALARS))
def test_drawing(points, height, radius):
    points = torch.from_numpy(points)[None]
    for call in (lambda: draw_key_points(points, height, 32), lambda: draw_landmarks(points, 32, height, radius)):
        assert_finite(answer(call))


def test_hostile_values_are_hostile():
    with pytest.raises(RuntimeError):
        float(Hostile())
