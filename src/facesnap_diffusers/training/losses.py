"""The parts of `L = L_diffusion + λ_id · L_id`, as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..errors import InputError


class NoiseSchedule:
    r"""
    The part of a scheduler that training needs: `noisy = alpha · clean + sigma · noise`, with the arithmetic in float32 (or
    float64 if the samples are).

    Args:
        scheduler (`SchedulerMixin`): Of the base model, with `alphas_cumprod` and `config.prediction_type`
            `"epsilon"` or `"v_prediction"`.
    """

    def __init__(self, scheduler: SchedulerMixin):
        prediction_type = scheduler.config.get("prediction_type", "epsilon")
        if prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(
                f"the base model predicts {prediction_type!r}; training supports epsilon and v_prediction"
            )
        self.predicts_velocity = prediction_type == "v_prediction"
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        if not self.predicts_velocity and self.alphas_cumprod.min() < 1e-6:
            raise InputError(
                "the base model's schedule ends in pure noise (zero terminal SNR) but it predicts epsilon, which says"
                " nothing there; use prediction_type v_prediction"
            )

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def snr(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio `alpha² / sigma²` of timesteps `(batch,)`, in float32."""
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps]
        return (alphas / (1 - alphas)).float()

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        alpha, sigma = self._alpha_sigma(clean, timesteps)
        return alpha * clean + sigma * noise

    def target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the model should predict: the noise, or the velocity `alpha · noise - sigma · clean`."""
        if not self.predicts_velocity:
            return noise
        alpha, sigma = self._alpha_sigma(clean, timesteps)
        return alpha * noise - sigma * clean

    def clean(self, noisy: torch.Tensor, predicted: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The clean sample implied by the prediction for a noisy one."""
        alpha, sigma = self._alpha_sigma(noisy, timesteps)
        if self.predicts_velocity:
            return alpha * noisy - sigma * predicted
        return (noisy - sigma * predicted) / alpha

    def noise(self, noisy: torch.Tensor, predicted: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The noise implied by the prediction for a noisy sample."""
        if not self.predicts_velocity:
            return predicted
        alpha, sigma = self._alpha_sigma(noisy, timesteps)
        return sigma * noisy + alpha * predicted

    def min_snr_weight(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        r"""
        Weights of the timesteps in the error of the prediction, "Efficient Diffusion Training via Min-SNR Weighting
        Strategy" (Hang et al. 2023, arXiv 2303.09556, section 3.4): `min(SNR, gamma)` of the error of the clean
        sample, which is `min(SNR, gamma) / SNR` of that of the noise and `min(SNR, gamma) / (SNR + 1)` of that of
        the velocity.
        """
        snr = self.snr(timesteps)
        return snr.clamp(max=gamma) / (snr + 1 if self.predicts_velocity else snr)

    def _alpha_sigma(self, samples: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps][:, None, None, None]
        dtype = at_least_single(samples).dtype
        return alphas.sqrt().to(dtype), (1 - alphas).sqrt().to(dtype)


def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, in which losses are computed whatever the models' dtype; in float64 where they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def identity_distance(embeds: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`1 - cos` between face embeddings `(batch, dim)`, of shape `(batch,)`."""
    return 1 - F.cosine_similarity(embeds, reference, dim=-1)


def contrastive_loss(
    embeds: torch.Tensor,
    reference: torch.Tensor,
    negatives: torch.Tensor,
    usable: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    r"""
    InfoNCE, "Representation Learning with Contrastive Predictive Coding" (van den Oord et al. 2018, arXiv 1807.03748,
    equation 4): `-log(exp(cos(embeds, reference) / t) / Σ exp(cos(embeds, other) / t))`, the sum over the reference and the
    negatives.

    Args:
        embeds (`torch.Tensor` of shape `(batch, dim)`), reference (`torch.Tensor` of shape `(batch, dim)`): Face embeddings.
        negatives (`torch.Tensor` of shape `(count, dim)`): Of other people.
        usable (`torch.Tensor` of shape `(batch, count)`): Which of them are somebody else than the one in the sample.
        temperature (`float`): `t`.

    Returns:
        `torch.Tensor` of shape `(batch,)`.
    """
    embeds, reference, negatives = (F.normalize(values, dim=-1) for values in (embeds, reference, negatives))
    positive = (embeds * reference).sum(dim=-1, keepdim=True) / temperature  # (batch, 1)
    negative = (embeds @ negatives.T / temperature).masked_fill(~usable, -torch.inf)  # (batch, count)
    return torch.cat([positive, negative], dim=1).logsumexp(dim=1) - positive[:, 0]


def face_weights(
    landmarks: torch.Tensor, image_size: tuple[int, int], latent_size: tuple[int, int], weight: float
) -> torch.Tensor:
    r"""
    Weights of the places of a latent in the loss: `weight` where the face is, 1 elsewhere, with a soft edge, scaled to
    1 on average.

    Args:
        landmarks (`torch.Tensor` of shape `(batch, points, 2)`): In pixels of the image.
        image_size (`tuple[int, int]`), latent_size (`tuple[int, int]`): Height and width.
        weight (`float`): Of the face.

    Returns:
        `torch.Tensor` of shape `(batch, 1, height, width)` of the latent.
    """
    low, high = landmarks.amin(dim=1), landmarks.amax(dim=1)
    center, radius = (low + high) / 2, (high - low).clamp(min=1) / 2
    distances = []
    for axis, (pixels, count) in enumerate(zip(reversed(image_size), reversed(latent_size), strict=True)):
        position = (torch.arange(count, device=landmarks.device) + 0.5) * (pixels / count) - 0.5
        distances.append(((position - center[:, axis, None]) / radius[:, axis, None]).square())
    inside = torch.sigmoid(6 * (1.3 - distances[1][:, :, None] - distances[0][:, None, :]))
    weights = 1 + (weight - 1) * inside[:, None]
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)
