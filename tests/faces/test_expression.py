"""Expressions by name, by ARKit weights and as text."""

import math

import numpy as np
import pytest

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.expression import EXPRESSION_NAMES, PRESETS, Expression


# The 52 blend shapes of Apple's ARKit.
ARKIT = [
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthLowerDownLeft",
    "mouthLowerDownRight",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "mouthSmileLeft",
    "mouthSmileRight",
    "mouthStretchLeft",
    "mouthStretchRight",
    "mouthUpperUpLeft",
    "mouthUpperUpRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
]


def test_arkit_names_reach_every_expression():
    assert len(ARKIT) == 52 and len(EXPRESSION_NAMES) == 53
    weights = Expression(dict.fromkeys(ARKIT, 0.5)).weights
    assert weights == dict.fromkeys(EXPRESSION_NAMES, 0.5)


def test_spellings_mean_the_same():
    one = Expression({"mouthSmile_L": 0.8, "mouthSmile_R": 0.8})
    assert one == Expression({"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8}) == Expression({"mouthSmile": 0.8})
    assert hash(one) == hash(Expression({"mouthSmile": 0.8}))
    assert Expression({"mouthLeft": 0.3}).weights == {
        "mouthLeft": 0.3
    }  # the whole mouth to the left: no side of a pair


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    expression = Expression.of(name)
    vector = expression.to_vector(EXPRESSION_NAMES)
    assert vector.shape == (53,) and vector.dtype == np.float32
    assert (vector.sum() > 0) == (name != "neutral")
    assert Expression.of(expression) is expression
    assert Expression.from_vector(vector) == Expression(
        {k: float(np.float32(v)) for k, v in expression.weights.items()}
    )


def test_strengths_as_text():
    """As they stand on the command line and in tables."""
    weights = {"jawOpen": 0.4, "mouthSmileLeft": 0.8}
    assert Expression.of("jawOpen=0.4, mouthSmileLeft=.8") == Expression(weights)
    for text, message in (
        ("jawOpen=wide", "'jawOpen=wide' must be name=strength"),
        ("jawOpen=0.4,", "must be name=strength"),
        ("jawOpen=0.4,jawOpen=0.4", "given twice"),
        ("jawOpn=0.4", "did you mean 'jawOpen'"),
        ("jawOpen=nan", "from 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            Expression.of(text)


def test_left_and_right_presets_mirror_each_other():
    swapped = {name.replace("_L", "_R"): value for name, value in Expression.of("wink_left").weights.items()}
    assert Expression.of("wink_right").weights == swapped


def test_vector_follows_the_order_asked_for():
    expression = Expression({"jawOpen": 0.4, "eyeBlink_R": 1})
    np.testing.assert_allclose(expression.to_vector(["eyeBlink_R", "mouthClose", "jawOpen"]), [1, 0, 0.4])
    with pytest.raises(InputError, match="jawOpen"):
        expression.to_vector(["eyeBlink_R"])


def test_mixing():
    mixed = 0.5 * Expression({"jawOpen": 0.8}) + Expression({"jawOpen": 0.2, "mouthPucker": 0.6})
    assert mixed.weights == pytest.approx({"jawOpen": 0.6, "mouthPucker": 0.6})
    assert (Expression({"jawOpen": 0.8}) + Expression({"jawOpen": 0.7})).weights == {"jawOpen": 1}
    assert (3 * Expression({"jawOpen": 0.2, "mouthPucker": 0.5})).weights == pytest.approx(
        {"jawOpen": 0.6, "mouthPucker": 1}
    )


def test_numbers_of_numpy_scale_too():
    smile = Expression.of("smile")
    for factor in (np.float32(0.5), np.float64(0.5), np.int64(1), 1):
        assert factor * smile == smile * factor == smile * float(factor)


def test_interpolation():
    start, end = Expression({"jawOpen": 0.2}), Expression({"jawOpen": 0.6, "cheekPuff": 1})
    assert start.interpolate(end, 0.25).weights == pytest.approx(
        {"cheekPuff_L": 0.25, "cheekPuff_R": 0.25, "jawOpen": 0.3}
    )
    frames = Expression.of("neutral").sequence("smile", 5)
    assert frames[0] == Expression.of("neutral") and frames[-1] == Expression.of("smile")
    assert [frame.weights.get("mouthSmile_L", 0) for frame in frames] == pytest.approx([0, 0.175, 0.35, 0.525, 0.7])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("smiel", "did you mean 'smile'"),
        ("???", "the presets are neutral, smile"),
        ({"mouthSmilLeft": 1}, "did you mean 'mouthSmileLeft'"),
        ({"jawOpen": 1.01}, "strength of expression 'jawOpen' must be a finite number from 0 to 1, got 1.01"),
        ({"jawOpen": -0.1}, "from 0 to 1"),
        ({"jawOpen": math.nan}, "from 0 to 1"),
        ({"jawOpen": "wide"}, "from 0 to 1"),
        ({"mouthSmile": 0.1, "mouthSmileLeft": 0.2}, "'mouthSmile_L' a second time"),
        (None, "preset's name or a mapping"),
        (0.5, "preset's name or a mapping"),
    ],
)
def test_wrong_expressions_are_explained(value, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?") if message.startswith("?") else message):
        Expression.of(value)


def test_wrong_weights_of_mixing():
    smile = Expression.of("smile")
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="weight"):
            smile.interpolate("sad", bad)
    with pytest.raises(InputError, match="factor"):
        -1 * smile
    with pytest.raises(InputError, match="count"):
        smile.sequence("sad", 1)
    with pytest.raises(TypeError):
        smile + 1
