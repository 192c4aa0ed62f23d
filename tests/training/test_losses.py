"""The parts of the training loss against closed forms, finite differences and other implementations."""

import pytest
import tiny
import torch
from diffusers.training_utils import compute_snr
from smooth_recognizer import SmoothRecognizer
from tiny_training import noise_schedule, normal_samples

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.losses import face_weights, identity_distance
from facesnap_diffusers.training.recognizer import FaceRecognizer


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
class TestNoiseSchedule:
    timesteps = torch.tensor([0, 37, 500, 990])

    def test_agrees_with_the_scheduler(self, prediction_type, zero_snr):
        ours, scheduler = noise_schedule(prediction_type, zero_snr)
        clean, noise = normal_samples()
        noisy = ours.add_noise(clean, noise, self.timesteps)
        assert torch.allclose(noisy, scheduler.add_noise(clean, noise, self.timesteps), atol=1e-5)
        if prediction_type == "v_prediction":
            velocity = scheduler.get_velocity(clean, noise, self.timesteps)
            assert torch.allclose(ours.target(clean, noise, self.timesteps), velocity, atol=1e-5)
        assert torch.allclose(ours.snr(self.timesteps), compute_snr(scheduler, self.timesteps), rtol=1e-3)

    def test_clean_and_noise_invert_the_target(self, prediction_type, zero_snr):
        ours, _ = noise_schedule(prediction_type, zero_snr)
        clean, noise = normal_samples(dtype=torch.float64)
        noisy = ours.add_noise(clean, noise, self.timesteps)
        target = ours.target(clean, noise, self.timesteps)
        assert torch.allclose(ours.clean(noisy, target, self.timesteps), clean, atol=1e-9)
        assert torch.allclose(ours.noise(noisy, target, self.timesteps), noise, atol=1e-9)

    def test_min_snr_weighs_the_error_of_the_clean_sample(self, prediction_type, zero_snr):
        ours, _ = noise_schedule(prediction_type, zero_snr)
        clean, noise = normal_samples(dtype=torch.float64)
        noisy = ours.add_noise(clean, noise, self.timesteps)
        target = ours.target(clean, noise, self.timesteps)
        predicted = target + 0.1 * normal_samples(1, torch.float64)[0]
        of_prediction = (predicted - target).square().mean((1, 2, 3))
        of_clean = (ours.clean(noisy, predicted, self.timesteps) - clean).square().mean((1, 2, 3))
        expected = ours.snr(self.timesteps).clamp(max=5) * of_clean
        assert torch.allclose(ours.min_snr_weight(self.timesteps, 5.0) * of_prediction, expected, rtol=1e-4)


def test_zero_terminal_snr_with_epsilon_is_refused():
    with pytest.raises(InputError, match="zero terminal SNR"):
        noise_schedule("epsilon", zero_snr=True)
    ours, _ = noise_schedule("v_prediction", zero_snr=True)
    last = torch.tensor([999])
    assert ours.snr(last) == 0 and torch.isfinite(ours.min_snr_weight(last, 5.0)).all()


def test_face_weights():
    landmarks = torch.rand(2, 72, 2) * 16 + torch.tensor([32.0, 8.0])  # right of the middle, at the top
    weights = face_weights(landmarks, (64, 64), (8, 8), 4.0)
    assert weights.shape == (2, 1, 8, 8) and torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    face, corner = weights[:, 0, 2, 5], weights[:, 0, 7, 0]
    assert torch.allclose(face / corner, torch.full((2,), 4.0), rtol=0.2)


def test_gradient_of_the_identity_loss_agrees_with_finite_differences():
    """From the UNet's prediction through the clean latent, the VAE's decoder, the warp and the recognizer."""
    vae = tiny.sd_pipeline().vae.double()
    recognizer = FaceRecognizer(SmoothRecognizer().double(), size=32)
    noises, _ = noise_schedule("v_prediction")
    clean, noise = normal_samples(2, torch.float64)
    timesteps = torch.tensor([100, 200, 300, 400])
    noisy = noises.add_noise(clean, noise, timesteps)
    landmarks = (tiny.face_points() * 0.12 + 1).double()[None].repeat(4, 1, 1)
    reference = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(predicted):
        images = vae.decode(noises.clean(noisy, predicted, timesteps) / vae.config.scaling_factor).sample
        return identity_distance(recognizer(images / 2 + 0.5, landmarks), reference).mean()

    predicted = normal_samples(4, torch.float64)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(predicted), predicted)
    with torch.no_grad():
        for seed in range(8):
            direction = torch.randn(
                predicted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
            )
            step = 1e-5 * direction
            difference = (loss(predicted + step) - loss(predicted - step)) / 2e-5
            assert abs(difference) > 1e-6
            assert torch.allclose((gradient * direction).sum(), difference, rtol=0.01)
