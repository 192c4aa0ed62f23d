"""What examples/nano makes for the adapter: chips, captions, losses, the mixer's start."""

from pathlib import Path

import numpy as np
import pytest
import torch


pytest.importorskip("dlib")
pytest.importorskip("cv2")

import tiny
from average_adapters import average
from embed_faces import chip
from people.captions import HAIR_STYLES, SKIN_TONES
from prepare_shards import scene_caption
from start_adapter import whiten_face_projection
from train_image_encoder import contrast

from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.faces.alignment import align_face
from facesnap_diffusers.models.mixer import FacialAttributeMixer


pytestmark = pytest.mark.slow


def smooth_picture(side: int = 128) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    tensor = torch.from_numpy(small).permute(2, 0, 1)[None].float()
    large = torch.nn.functional.interpolate(tensor, (side, side), mode="bicubic").clamp(0, 255)
    return large[0].permute(1, 2, 0).round().byte().numpy()


def test_the_renderers_landmarks_give_the_same_chip_to_dlib_and_to_the_identity_loss():
    reference = np.loadtxt(Path(__file__).parents[1] / "data/landmarks_reference.csv", delimiter=",")
    low, high = reference.min(0), reference.max(0)
    landmarks = (35 + 60 * (reference - low) / (high - low).max()).round() + 0.5  # centres of pixels
    picture = smooth_picture()
    expected = chip(picture, landmarks)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    crop = align_faces(pixels, torch.from_numpy(landmarks).float()[None] - 0.5, "dlib")[0].permute(1, 2, 0).numpy()
    assert np.abs(crop - expected)[8:-8, 8:-8].mean() < 2
    assert np.abs(align_face(picture, landmarks, 150) - crop)[8:-8, 8:-8].mean() > 5  # another crop is told apart


def test_captions_of_training_leave_the_person_out():
    attributes = {"expression": "smiling", "direction": "looking left", "shirt": "red", "background": "blue"}
    attributes |= {"skin": "pale", "hair_style": "bob", "hair_color": "blond", "eyes": "green", "bangs": True}
    captions = {scene_caption(attributes, np.random.default_rng(k)) for k in range(600)}
    assert len(captions) == 16  # each of the four clauses is sometimes there and sometimes not
    assert all(caption.startswith("a photo of a person") for caption in captions)
    assert not any(word in caption for caption in captions for word in (*SKIN_TONES, *HAIR_STYLES, "blond", "green"))


def test_the_contrastive_loss_is_that_of_its_closed_form():
    same = torch.eye(6)
    scale = torch.tensor(3.0)
    # every row has one logit of 3 and five of 0
    expected = -torch.log(scale.exp() / (scale.exp() + 5))
    torch.testing.assert_close(contrast(same, same, scale), expected)
    assert contrast(same, same.roll(1, 0), scale) > expected + 2.9


def test_the_mixers_face_tokens_vary_from_the_start():
    torch.manual_seed(0)
    embeddings = 0.1 * torch.randn(40, 5, 12) + torch.linspace(-1, 1, 12)
    mixer = FacialAttributeMixer(32, 12, None, num_tokens=4, num_face_tokens=2, hidden_size=16, attention_head_dim=8)
    whiten_face_projection(mixer, embeddings)
    projected = mixer.face_proj(embeddings.flatten(0, 1))
    torch.testing.assert_close(projected.mean(0), torch.zeros(32), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.std(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_an_average_lies_between_two_adapters(tmp_path):
    tiny.sd_pipeline().save_pretrained(tmp_path / "base")
    pipes = {}
    for name, seed in (("before", 2), ("after", 5)):
        pipes[name] = tiny.facesnap(tiny.sd_pipeline())
        tiny.add_adapter(pipes[name], seed=seed)
        pipes[name].save_facesnap_adapter(tmp_path / name)
    average(tmp_path / "base", tmp_path / "before", tmp_path / "after", 0.25, tmp_path / "averaged")
    averaged = tiny.facesnap(tiny.sd_pipeline())
    averaged.load_facesnap_adapter(tmp_path / "averaged")
    for part in ("mixer", "identity_attention", "ffrnet"):
        before, after, found = (
            getattr(pipe, part).state_dict() for pipe in (pipes["before"], pipes["after"], averaged)
        )
        for name, weight in found.items():
            torch.testing.assert_close(weight, 0.75 * before[name] + 0.25 * after[name])
