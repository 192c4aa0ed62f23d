"""The face loss that the nano base and its decoder are taught with."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

from face_loss import LEAST_SIGNAL, PATCH, FaceLoss, drawn_faces_loss, edge_strength, sample_loss
from train_autoencoder import to_tensor
from train_base import BaseModel

from facesnap_diffusers import load_nano_pipeline, nano_people
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.training_config import IdentityLossConfig, LossConfig


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people():
    return nano_people()[:3]


@pytest.fixture(scope="module")
def pictures(people):
    return to_tensor(np.stack([np.array(person.picture) for person in people]))


@pytest.fixture(scope="module")
def landmarks(people):
    return torch.stack([person.identity.landmarks for person in people])


def test_the_loss_is_smallest_for_the_same_face(pictures, landmarks):
    face_loss = FaceLoss()
    blurred = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4, mode="bilinear")
    with torch.no_grad():
        same = face_loss(pictures, pictures, landmarks)
        spoiled = face_loss(blurred, pictures, landmarks)
        other_faces = face_loss(pictures.roll(1, 0), pictures, landmarks)
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)
    assert (spoiled > 0.1).all()
    assert (other_faces > spoiled).all()


def test_predicted_latents_are_those_of_the_velocity():
    """Where the predicted velocity is the true one, its clean latents are those that went in."""
    model = BaseModel()
    latents, noise = torch.randn(2, 4, 16, 16, 16)
    timesteps = torch.tensor([10, 300, 700, 999])
    velocity = model.scheduler.get_velocity(latents, noise, timesteps)
    model.unet.forward = lambda *_: types.SimpleNamespace(sample=velocity)
    _, error, clean = model.losses(latents, torch.ones(4, 1, 16, 16), ["a photo of a person"] * 4, timesteps, noise)
    assert error < 1e-10
    torch.testing.assert_close(clean, latents, atol=1e-4, rtol=0)


def test_faces_are_judged_where_there_is_signal(pictures, landmarks):
    vae = load_nano_pipeline().vae
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
    wrong = latents.roll(1, 0).requires_grad_(True)
    signal = torch.tensor([0.9, LEAST_SIGNAL / 2, 0.5])

    def loss_of(predicted, signal):
        return drawn_faces_loss(lambda x: vae.decode(x).sample, predicted, latents, landmarks, signal)

    loss = loss_of(wrong, signal)
    (gradient,) = torch.autograd.grad(loss, wrong)
    assert gradient[0].any()
    assert gradient[2].any()
    assert not gradient[1].any()
    with torch.no_grad():
        assert loss_of(latents, signal) < 1e-4 < loss
        assert loss_of(wrong, torch.zeros(3)) == 0


def test_edge_strength():
    stripes = torch.tensor([-1.0, 1.0]).repeat(PATCH).expand(1, 3, 2 * PATCH, 2 * PATCH)
    # the last pixel of a row has no neighbour
    expected = torch.tensor([2, 2 * ((PATCH - 1) / PATCH) ** 0.5]).expand(1, 3, 2, 2)
    for pictures, strength in ((stripes, expected), (stripes.mT, expected.mT)):
        torch.testing.assert_close(edge_strength(pictures), strength, atol=1e-3, rtol=0)


def test_samples_are_compared_with_the_true_pictures(pictures, landmarks):
    objective = Objective(load_nano_pipeline(), ["mixer"], LossConfig(), IdentityLossConfig(every=2))
    left_out = torch.zeros(3, dtype=torch.bool)
    batch = {"detected": landmarks, "without_text": left_out, "without_identity": left_out}
    batch["without_landmarks"] = torch.tensor([True, False, False])
    with torch.no_grad():
        latents = objective.encode_images(pictures, torch.zeros(3, 16, 16, 16))
    blurred = F.interpolate(F.avg_pool2d(latents, 2), scale_factor=2, mode="bilinear")

    def loss_of(sampled):
        return sample_loss(objective=objective, batch=batch, latents=latents, sampled_latents=sampled, step=0)

    other_latents = latents.roll(1, 0).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(other_latents), other_latents)
    # nobody knows where the face of the first one should be
    assert gradient[1].any()
    assert gradient[2].any()
    assert not gradient[0].any()
    assert loss_of(None) == 0
    with torch.no_grad():
        assert loss_of(latents) < 1e-4 < loss_of(blurred) < loss_of(other_latents)
        assert loss_of(torch.cat([other_latents[:1], latents[1:]])) < 1e-4
        nobody = {**batch, "without_identity": ~left_out}
        assert sample_loss(objective=objective, batch=nobody, latents=latents, sampled_latents=other_latents) == 0
