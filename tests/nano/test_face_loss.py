"""The face loss that the nano base and its decoder are taught with."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

from face_loss import ADAPTER_WEIGHT, LEAST_SIGNAL, FaceLoss, adapter_loss, drawn_faces_loss  # noqa: E402
from train_autoencoder import to_tensor  # noqa: E402
from train_base import BaseModel  # noqa: E402

from facesnap_diffusers import load_nano_pipeline, nano_people  # noqa: E402
from facesnap_diffusers.training.config import IdentityLossConfig, LossConfig  # noqa: E402
from facesnap_diffusers.training.objective import Objective  # noqa: E402


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
        others = face_loss(pictures.roll(1, 0), pictures, landmarks)
    torch.testing.assert_close(same, torch.zeros(3), atol=1e-5, rtol=0)
    assert (spoiled > 0.1).all() and (others > spoiled).all()


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
    assert gradient[0].any() and gradient[2].any() and not gradient[1].any()
    with torch.no_grad():
        assert loss_of(latents, signal) < 1e-4 < loss
        assert loss_of(wrong, torch.zeros(3)) == 0


def test_the_adapters_loss_is_that_of_its_predictions(pictures, landmarks):
    pipe = load_nano_pipeline()
    objective = Objective(pipe, ["mixer"], LossConfig(), IdentityLossConfig())
    with torch.no_grad():
        latents = objective.encode_images(pictures, torch.zeros(3, 16, 16, 16))
        timesteps = torch.tensor([100, 200, 300])
        batch = {"timestep": timesteps, "detected": landmarks}
        others = latents.roll(1, 0)
        found = adapter_loss(objective=objective, batch=batch, latents=latents, predicted_latents=others, step=0)
        signal = pipe.scheduler.alphas_cumprod[timesteps]
        factor = pipe.vae.config.scaling_factor
        pair = (pipe.vae.decode(part / factor).sample for part in (others, latents))
        expected = ADAPTER_WEIGHT * (signal * FaceLoss()(*pair, landmarks)).mean()
    torch.testing.assert_close(found, expected, rtol=3e-2, atol=0)  # in bfloat16, where the processor has it
