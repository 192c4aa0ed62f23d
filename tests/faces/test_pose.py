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
    "angles, name",
    [({"yaw": 91}, "yaw"), ({"pitch": -90.5}, "pitch"), ({"roll": 181}, "roll"), ({"yaw": math.nan}, "yaw"),
     ({"pitch": math.inf}, "pitch"), ({"roll": "left"}, "roll"), ({"yaw": None}, "yaw")],
)  # fmt: skip
def test_wrong_poses_are_named(angles, name):
    with pytest.raises(InputError, match=f"^{name} must"):
        HeadPose(**angles)
