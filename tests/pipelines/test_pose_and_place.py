"""Pose, expression and place of a face in the image."""

import pytest
import tiny
import torch

from facesnap_diffusers import (
    HeadPose,
)


class TestSteering:
    def test_default_is_the_reference_itself(self, pipe):
        identity = tiny.identity()
        points = pipe.predict_landmarks(identity, height=100, width=120)
        # the predictor's fit of the mean face, which it knows well
        error = (points[0, :68] - identity.landmarks).norm(dim=-1).mean()
        assert error < 0.1 * (identity.landmarks[36] - identity.landmarks[45]).norm()

    def test_pose_and_expression_by_numbers(self, pipe):
        def points(**kwargs):
            return pipe.predict_landmarks(tiny.identity(), height=64, width=64, **kwargs)[0]

        def nose_offset(p):
            return (p[30, 0] - (p[36, 0] + p[45, 0]) / 2) / (p[45, 0] - p[36, 0])

        assert nose_offset(points(pose=HeadPose(yaw=30))) > 0.1 > -0.1 > nose_offset(points(pose=HeadPose(yaw=-30)))
        mouth = points(expression={"jawOpen": 1.0})[[62, 66], 1] - points(expression="neutral")[[62, 66], 1]
        assert mouth[1] - mouth[0] > 1

    def test_face_box(self, pipe):
        points = pipe.predict_landmarks(
            tiny.identity(),
            height=100,
            width=200,
            pose=HeadPose(),
            expression="neutral",
            face_box=(0.5, 0.2, 0.9, 0.6),
        )[0]
        low, high = points.amin(0), points.amax(0)
        torch.testing.assert_close((low + high) / 2, torch.tensor([140.0, 40.0]), atol=0.5, rtol=0)
        assert (high - low)[1].item() == pytest.approx(40, abs=0.5)

    def test_without_landmarks_a_portrait(self, pipe):
        points = pipe.predict_landmarks(tiny.identity(landmarks=False), height=64, width=64)
        assert points.min() > 0 and points.max() < 64

    def test_a_turntable_is_one_batch(self, pipe):
        poses = [HeadPose(yaw=yaw) for yaw in (-30, 0, 30)]
        images = tiny.generate(pipe, identity=tiny.identity(), pose=poses)
        assert images.shape[0] == 3 and not torch.equal(images[0], images[2])

    def test_own_landmarks_are_used_as_they_are(self, pipe):
        points = pipe.predict_landmarks(tiny.identity(), height=64, width=64, pose=HeadPose(yaw=20))
        expected = tiny.generate(pipe, identity=tiny.identity(), pose=HeadPose(yaw=20))
        assert torch.equal(tiny.generate(pipe, identity=tiny.identity(), landmarks=points), expected)
