"""How the Landmark Predictor is made: the morphable model's files, the training script, the estimate of what is possible."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from morphable_model import landmark_arrays, write_checkout, write_packed

from facesnap_diffusers import LandmarkPredictor, load_landmark_predictor
from facesnap_diffusers.faces.layout import MIRROR, OUTER_EYE_CORNERS
from facesnap_diffusers.models.landmark_predictor import rotation_matrix


pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("landmark_model", "pack", "synthetic", "posterior", "train")


@pytest.fixture(scope="module")
def scripts():
    """The modules of examples/landmark_predictor, by name. They are scripts: their folder is on the path for a while."""
    folder = str(ROOT / "examples" / "landmark_predictor")
    sys.path.insert(0, folder)
    try:
        loaded = {name: __import__(name) for name in SCRIPTS}
        assert all(module.__file__.startswith(folder) for module in loaded.values())
        yield loaded
    finally:
        sys.path.remove(folder)
        for name in SCRIPTS:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(scripts):
    """The morphable model that ships with the predictor: 64 modes of the ICT FaceKit's 100."""
    return scripts["landmark_model"].LandmarkModel(*landmark_arrays())


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_packed(folder)
    return folder


def test_landmarks_of_the_morphable_model(scripts, model, packed):
    loaded = scripts["landmark_model"].load_landmark_model(packed)
    assert loaded.expression_names == model.expression_names
    np.testing.assert_allclose(loaded.mean, model.mean - model.mean.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(loaded.identity, model.identity, atol=1e-6)
    np.testing.assert_allclose(loaded.expression, model.expression, atol=1e-6)


def test_packing_script(scripts, tmp_path, monkeypatch):
    write_checkout(tmp_path)
    monkeypatch.setattr("sys.argv", ["pack.py", str(tmp_path), str(tmp_path / "out.npz")])
    scripts["pack"].main()
    loaded, read = map(scripts["landmark_model"].load_landmark_model, (tmp_path / "out.npz", tmp_path))
    assert loaded.expression_names == read.expression_names
    for name in ("mean", "identity", "expression"):
        np.testing.assert_allclose(getattr(loaded, name), getattr(read, name), atol=2e-3)  # half precision


def test_shape_basis_has_the_same_people(scripts):
    """Symmetric and asymmetric components together have the covariance of a population and its mirror images."""
    identity = np.random.default_rng(0).normal(size=(20, 72, 3))
    parts = scripts["landmark_model"].mirror_shape_basis(identity, list(MIRROR), 20, 20)
    covariance = sum(np.einsum("kpi,kqj->piqj", part, part) for part in parts)
    mirrored = identity[:, list(MIRROR)] * [-1, 1, 1]
    expected = sum(np.einsum("kpi,kqj->piqj", part, part) / 2 for part in (identity, mirrored))
    np.testing.assert_allclose(covariance, expected, atol=1e-9)


def test_training_script(scripts, packed, tmp_path, monkeypatch):
    """From the morphable model to a folder that loads; training continues from a checkpoint."""
    arguments = ["--model", packed, "--output", tmp_path / "out", "--checkpoint", tmp_path / "state"]
    arguments += ["--batch", 24, "--hidden-size", 8, "--layers", 1, "--stages", 1, "--stage-batches", 2]

    def train(*more):
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, (*arguments, *more))])
        scripts["train"].main()
        return torch.load(tmp_path / "state" / "state.pt", weights_only=True)["step"]

    assert train("--steps", 4, "--checkpoint-every", 3) == 3
    trained, shipped = LandmarkPredictor.from_pretrained(tmp_path / "out"), load_landmark_predictor()
    torch.testing.assert_close(trained.mean, shipped.mean - shipped.mean.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.expression_basis, shipped.expression_basis, atol=1e-5, rtol=0)
    # Its linear stages alone, fitted to a few thousand faces, are better than the driving face's own landmarks.
    sampler = scripts["synthetic"].FaceSampler(scripts["landmark_model"].load_landmark_model(packed), seed=9)
    with torch.no_grad():
        errors = [scripts["train"].loss_of(predictor, sampler, 600, 2)[1].item() for predictor in (trained, shipped)]
    assert errors[1] < errors[0] < 0.055

    assert train("--steps", 5, "--checkpoint-every", 5) == 5


class TestPosterior:
    @pytest.fixture
    def faces(self, scripts, model):
        sampler = scripts["synthetic"].FaceSampler(model, seed=2, dtype=torch.float64)
        truth = sampler.protocol(3)
        points = sampler.landmarks(truth)
        noise = 0.015 * (points[:, OUTER_EYE_CORNERS[1], :2] - points[:, OUTER_EYE_CORNERS[0], :2]).norm(dim=-1)
        return sampler, truth, sampler.observe(points)[:, :68], noise

    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_shape_is_integrated_out_exactly(self, scripts, faces, dimensions):
        """The marginal likelihood and the mean shape, against dense Gaussians of all observed coordinates."""
        sampler, truth, observed, noise = faces
        posterior = scripts["posterior"].Posterior(sampler, truth, observed[..., :dimensions], noise)
        values, means = [], []
        for change in (0.0, 3.0):
            walk = posterior.walk + torch.tensor([change, -change, change / 2, change / 100])
            value, (shape, _) = posterior._likelihood(walk, posterior.expression)
            values.append(value)
            means.append(posterior._mix(shape, posterior.shape))

        axes = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
        deviation = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
        for row in range(3):
            expected = []
            for change, mean in ((0.0, means[0]), (3.0, means[1])):
                walk = posterior.walk[row] + torch.tensor([change, -change, change / 2, change / 100])
                turn = (walk[3].exp() * axes[:, None] * rotation_matrix(torch.deg2rad(walk[None, :3]))[0])[:dimensions]

                def seen(points, turn=turn):  # (..., 72, 3) to the observed coordinates
                    return (points[..., :68, :] @ turn.T).flatten(-2)

                neutral = sampler.mean + torch.einsum("k,kpi->pi", truth.expression[row], sampler.expression)
                basis = seen(sampler.identity)
                place = torch.eye(dimensions, dtype=torch.float64).repeat(1, 68) * 1e3
                spread = (noise[row] * deviation[:dimensions]).square().repeat(68).diag()
                covariance = basis.T @ basis + place.T @ place + spread
                residual = observed[row, :, :dimensions].flatten() - seen(neutral)
                gaussian = torch.distributions.MultivariateNormal(torch.zeros(len(residual)).double(), covariance)
                prior = -0.5 * (walk[:3] / torch.tensor([20.0, 9.0, 7.0])).square().sum() + walk[3]
                expected.append(gaussian.log_prob(residual) + prior)
                offsets = sampler.identity.flatten(1).T @ (basis @ torch.linalg.solve(covariance, residual))
                torch.testing.assert_close(mean[row].flatten(), offsets, atol=1e-5, rtol=0)
            torch.testing.assert_close(values[1][row] - values[0][row], expected[1] - expected[0], atol=1e-5, rtol=0)

    def test_expressions_are_drawn_from_their_posterior(self, scripts, model):
        """One expression, everything else known: the frequencies of the draws, against a sum over a grid."""
        index = model.expression_names.index("jawOpen")
        alone = scripts["landmark_model"].LandmarkModel(
            model.mean, 1e-6 * model.identity[:1], 0.05 * model.expression[[index]], ["jawOpen"]
        )
        sampler = scripts["synthetic"].FaceSampler(alone, seed=4, dtype=torch.float64)
        truth = sampler.protocol(1)
        truth.expression[:] = 0.3
        points = sampler.landmarks(truth)
        noise = 0.015 * scripts["synthetic"].interocular(points)
        observed = sampler.observe(points)[:, :68, :2]
        chains = 20_000
        repeated = scripts["synthetic"].Faces(
            *(value.expand(chains, *value.shape[1:]) for value in vars(truth).values())
        )
        posterior = scripts["posterior"].Posterior(
            sampler, repeated, observed.expand(chains, -1, -1), noise.expand(chains)
        )
        posterior._draw_expressions()
        draws = posterior.expression[:, 0]

        grid = torch.linspace(0, 0.8, 401, dtype=torch.float64)[:, None]
        single = scripts["posterior"].Posterior(
            sampler,
            scripts["synthetic"].Faces(*(value.expand(401, *value.shape[1:]) for value in vars(truth).values())),
            observed.expand(401, -1, -1),
            noise.expand(401),
        )
        density = (single._likelihood(single.walk, grid)[0] - single._likelihood(single.walk, 0 * grid)[0]).exp()
        step = 0.8 / 400
        slab = 0.15 / 0.8 * torch.trapezoid(density, dx=step)
        active = slab / (slab + 0.85)
        assert 0.02 < active < 0.98
        error = 4 * math.sqrt(active * (1 - active) / chains)
        assert (draws > 0).double().mean().item() == pytest.approx(active.item(), abs=error)
        mean = torch.trapezoid(density * grid[:, 0], dx=step) / torch.trapezoid(density, dx=step)
        positive = draws[draws > 0]
        assert positive.mean().item() == pytest.approx(
            mean.item(), abs=4 * positive.std().item() / len(positive) ** 0.5
        )
        assert draws.max() <= 0.8

    def test_walk_finds_the_posterior(self, scripts, model):
        """Yaw of a rigid head, against a sum over a grid; the chains start far away."""
        rigid = scripts["landmark_model"].LandmarkModel(
            model.mean, 1e-6 * model.identity[:1], 0 * model.expression[:1], ["jawOpen"]
        )
        sampler = scripts["synthetic"].FaceSampler(rigid, seed=6, dtype=torch.float64)
        truth = sampler.protocol(1)
        points = sampler.landmarks(truth)
        noise = 3 * 0.015 * scripts["synthetic"].interocular(points)
        observed = sampler.observe(points, 3 * 0.015)[:, :68, :2]
        chains = 60
        start = scripts["synthetic"].Faces(
            *(value.repeat(chains, *(1,) * (value.ndim - 1)) for value in vars(truth).values())
        )
        start.rotation[:, 0] += 10
        posterior = scripts["posterior"].Posterior(
            sampler, start, observed.expand(chains, -1, -1), noise.expand(chains)
        )
        for _ in posterior.draws(150):
            pass
        yaw = torch.stack(posterior.history[300:])[..., 0]

        # The posterior of the four is Gaussian but for a bend: its mean and deviation from a grid about its peak.
        peak = torch.stack(posterior.history[300:]).mean((0, 1))
        hessian = torch.autograd.functional.hessian(lambda walk: self.log_posterior(posterior, walk[None])[0], peak)
        deviation = torch.linalg.inv(-hessian)[0, 0].sqrt()
        assert yaw.std().item() == pytest.approx(deviation.item(), rel=0.1)
        assert abs(yaw.mean() - truth.rotation[0, 0]) < 4 * deviation

    def log_posterior(self, posterior, walk):
        one = object.__new__(type(posterior))
        one.__dict__ = dict(posterior.__dict__)
        one.observed, one.deviation = posterior.observed[:1], posterior.deviation[:1]
        return one._likelihood(walk, posterior.expression[:1])[0]
