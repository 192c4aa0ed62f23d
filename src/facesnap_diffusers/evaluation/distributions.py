"""Metrics of a set of images, by torchmetrics: diversity (LPIPS), and the distance to a set of real ones (FID, KID)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from ..clip import ClipEncoder
from ..errors import InputError, MissingDependencyError, one_line
from ..faces.photo import load_photo


try:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
except ImportError as error:
    raise MissingDependencyError(
        f'diversity, FID and KID need torchmetrics ({one_line(error)}): pip install "facesnap-diffusers[eval]"'
    ) from error


INCEPTION_SIZE = 299
BATCH_SIZE = 16

#: Takes two batches of images `(N, 3, H, W)`, float in [-1, 1], and gives a distance for the batch.
PerceptualDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def lpips(device: str = "cpu") -> PerceptualDistance:
    """
    LPIPS with AlexNet (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

    Raises:
        MissingDependencyError: torchvision is not installed.
        InputError: AlexNet's weights, which torchvision downloads, could not be loaded.
    """
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type="alex").to(device)
    except (ImportError, RuntimeError):  # It is missing, or built for another torch.
        raise MissingDependencyError(
            "diversity needs torchvision, of the version that fits your torch: pip install torchvision"
        ) from None
    except OSError as error:
        raise InputError(
            f"diversity: AlexNet's weights could not be downloaded ({one_line(error)}); connect to the internet once"
        ) from None


@torch.no_grad()
def mean_pairwise_distance(
    groups: Iterable[Sequence[Path]], distance: PerceptualDistance, device: str = "cpu"
) -> float | None:
    r"""
    How different the images of one and the same person and prompt are: the mean distance over all pairs of each group,
    then over the groups.

    Args:
        groups (`Iterable[Sequence[Path]]`): Image files; groups of a single image are skipped.
        distance (`PerceptualDistance`): E.g. [`lpips`].
        device (`str`): Where it runs.

    Returns:
        `float`, or `None` where no group has two images.
    """
    means = []
    for group in groups:
        images = [
            torch.from_numpy(load_photo(path)).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1 for path in group
        ]
        pairs = [float(distance(a, b)) for a, b in itertools.combinations(images, 2) if a.shape == b.shape]
        if pairs:
            means.append(float(np.mean(pairs)))
    return float(np.mean(means)) if means else None


class ClipImageFeatures(torch.nn.Module):
    """A CLIP model in place of Inception for FID and KID (Kynkäänniemi et al. 2023, "The Role of ImageNet Classes in
    Fréchet Inception Distance"). Takes images `(N, 3, H, W)`, `uint8`."""

    def __init__(self, clip: ClipEncoder):
        super().__init__()
        self.clip = clip
        self.num_features = clip.model.config.projection_dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.clip.encode_images([image.permute(1, 2, 0).cpu().numpy() for image in images]))


def inception_features() -> torch.nn.Module:
    """
    InceptionV3's 2048 features, as FID's authors take them.

    Raises:
        MissingDependencyError: torch-fidelity is not installed.
        InputError: Its weights, which torch-fidelity downloads, could not be loaded.
    """
    try:
        return FrechetInceptionDistance(feature=2048).inception
    except ImportError:  # torchmetrics raises ModuleNotFoundError where torch-fidelity is missing.
        raise MissingDependencyError(
            "FID and KID on Inception's features need torch-fidelity: pip install torch-fidelity; or choose CLIP's"
        ) from None
    except OSError as error:
        raise InputError(
            f"FID: Inception's weights could not be downloaded ({one_line(error)}); connect to the internet once, or"
            " choose CLIP's features"
        ) from None


class DistributionDistance:
    r"""
    FID (Heusel et al. 2017) and KID (Bińkowski et al. 2018) to a set of real images.

    Args:
        real (`Sequence[Path]`): The real images.
        features (`torch.nn.Module`): Takes images `(N, 3, 299, 299)`, `uint8`, and gives features `(N, D)`.
        device (`str`): Where it runs.

    Raises:
        InputError: There are fewer than two real images.
    """

    def __init__(self, real: Sequence[Path], features: torch.nn.Module, device: str = "cpu"):
        if len(real) < 2:
            raise InputError(f"real has {len(real)} images; FID and KID need two at least, and thousands to be stable")
        self.features = features.to(device)
        self.device = device
        self._real = self._extract(real)

    def __call__(self, images: Sequence[Path]) -> tuple[float | None, float | None]:
        """FID and KID of image files to the real ones; `None` for fewer than two images."""
        if len(images) < 2:
            return None, None
        fake = self._extract(images)
        # the features are extracted already, once for both metrics
        extracted: Any = torch.nn.Identity()
        extracted.num_features = fake.shape[1]
        fid = FrechetInceptionDistance(feature=extracted).set_dtype(torch.float64)
        kid = KernelInceptionDistance(feature=extracted, subset_size=min(1000, len(self._real), len(fake)))
        for metric in (fid, kid):
            metric.update(self._real, real=True)
            metric.update(fake, real=False)
        with torch.random.fork_rng(devices=[]):  # KID draws subsets.
            torch.manual_seed(0)
            kid_mean, _ = kid.compute()
        return float(fid.compute()), float(kid_mean)

    @torch.no_grad()
    def _extract(self, paths: Sequence[Path]) -> torch.Tensor:
        return torch.cat([self.features(batch.to(self.device)).double().cpu() for batch in _batches(paths)])


def _batches(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
    for start in range(0, len(paths), BATCH_SIZE):
        yield torch.stack([_load(path) for path in paths[start : start + BATCH_SIZE]])


def _load(path: Path) -> torch.Tensor:
    image = PIL.Image.fromarray(load_photo(path, str(path)))
    image = image.resize((INCEPTION_SIZE, INCEPTION_SIZE), PIL.Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
