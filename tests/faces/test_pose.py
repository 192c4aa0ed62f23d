"""Head poses in degrees."""

import math

import numpy as np
import pytest

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.pose import HeadPose


def test_pose_defaults_and_sequence():
    assert HeadPose().as_tuple() == (0, 0, 0)
    assert HeadPose(yaw=10).interpolate(HeadPose(yaw=20, pitch=8), 0.25) == HeadPose(yaw=12.5, pitch=2)
    assert [pose.yaw for pose in HeadPose.turntable(5, yaw=40)] == [-40, -20, 0, 20, 40]
    assert HeadPose(yaw=np.float32(5), roll=3) == HeadPose(yaw=5.0, roll=3.0)


@pytest.mark.parametrize(
    ("angles", "name"),
    [({"yaw": 91}, "yaw"), ({"pitch": -90.5}, "pitch"), ({"roll": 181}, "roll"), ({"yaw": math.nan}, "yaw"),
     ({"pitch": math.inf}, "pitch"), ({"roll": "left"}, "roll"), ({"yaw": None}, "yaw")],
)  # fmt: skip
def test_wrong_poses_are_named(angles, name):
    with pytest.raises(InputError, match=f"^{name} must"):
        HeadPose(**angles)


@pytest.mark.parametrize("other", [None, 30, (30, 0, 0), {"yaw": 30}, "left", 10**400], ids=str)
def test_other_must_be_a_pose(other):
    for call in (lambda: HeadPose().interpolate(other, 0.5), lambda: HeadPose().sequence(other, 3)):
        with pytest.raises(InputError, match="other must be a HeadPose"):
            call()


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, None, "half", True, 10**400], ids=str)
def test_wrong_weights(weight):
    with pytest.raises(InputError, match="weight must be a finite number from 0 to 1"):
        HeadPose().interpolate(HeadPose(yaw=3), weight)


@pytest.mark.parametrize(
    "count",
    [1, 0, -5, 2.0, "3", None, True, 10**9, 10**5000],
    ids=lambda count: str(count)[:9] if not isinstance(count, int) else "int",
)
def test_wrong_counts(count):
    for call in (lambda: HeadPose().sequence(HeadPose(), count), lambda: HeadPose.turntable(count)):
        with pytest.raises(InputError, match="count must be an integer from 2 to 100000"):
            call()


def test_ends_of_a_sequence_are_exact():
    start, end = HeadPose(yaw=0.1, pitch=-33.3, roll=179.9), HeadPose(yaw=-89.7, pitch=12.34, roll=-0.7)
    poses = start.sequence(end, 7)
    assert poses[0] == start and poses[-1] == end and len(poses) == 7
