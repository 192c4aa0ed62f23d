"""The adapter of another kind that FaceSnap warms up from in examples/nano/warm_start.py."""

import pytest
import torch


pytest.importorskip("dlib")
pytest.importorskip("cv2")

from base_model import IMAGE_SIZE
from warm_start import start_points

from facesnap_diffusers import load_nano_pipeline, nano_people
from facesnap_diffusers.faces.key_points import draw_key_points
from facesnap_diffusers.interop.mixers import InstantIDMixer


pytestmark = pytest.mark.slow


def test_starts_awake_and_changes_nothing(tmp_path):
    pipe, people = load_nano_pipeline(), [person.identity for person in nano_people()]
    embeds = torch.stack([person.face_embeds for person in people])
    landmarks = torch.stack([person.landmarks[:, :2] for person in people])
    torch.manual_seed(0)
    start_points(pipe, embeds, landmarks)
    pipe.save_facesnap_adapter(tmp_path / "start")
    pipe.load_facesnap_adapter(tmp_path / "start")

    assert pipe.facesnap_config.landmark_style == "instantid5" and isinstance(pipe.mixer, InstantIDMixer)
    drawn = draw_key_points(landmarks, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        embedded = pipe.ffrnet.embed_landmarks(drawn)
        seen = pipe.mixer.projection.proj_in(embeds)
    assert 0.3 < embedded.std() < 3  # the activation of the layers between takes some of the one that each varies by
    torch.testing.assert_close(seen.std(), torch.tensor(1.0), atol=0.1, rtol=0)
    assert all(not layer.weight.any() for layer in pipe.ffrnet.controlnet_down_blocks)
