"""
How well can landmarks be re-targeted at all? The answer of Bayes' rule, with everything known: the morphable model, the
noise, the distribution of shapes, expressions and poses. No estimator has a lower mean squared error than the posterior
mean, which a Markov chain gives here; what is left between the predictor and it is what more training could bring.

The chain's state is expression, rotation and scale; shape and translation are Gaussian given these and are integrated
out. A chain that starts at the truth starts with an exact draw of the posterior, but remembers it: a short one's mean
lies too near to the truth. One that starts elsewhere errs on the other side. What is possible lies between the two.
"""

import math

import torch
from synthetic import Faces, FaceSampler

from facesnap_diffusers.models.landmark_predictor import NUM_LANDMARKS, rotation_matrix


ROTATION_DEVIATION = (20.0, 9.0, 7.0)
ACTIVE, STRONGEST = 0.15, 0.8  # an expression's probability, and the end of its uniform distribution
FREE = 1e3  # deviation of the translation's prior, pixels
STEP = (1.0, 1.0, 0.3, 0.03)  # of the random walk at its start: degrees, and log scale
SHAPE_MODES = 64  # principal components over people; the rest move a point by 0.2 mm in all
WALKS = 4  # steps of rotation and scale in a sweep


class Posterior:
    """
    Args:
        sampler: In float64.
        start: Where the chains start: expression, rotation and scale.
        observed: `(batch, points, 2 or 3)` in pixels.
        noise: `(batch,)`, deviation of x and y in pixels; that of z is twice as large.
    """

    def __init__(self, sampler: FaceSampler, start: Faces, observed: torch.Tensor, noise: torch.Tensor):
        self.sampler, self.count, self.dimensions = sampler, observed.shape[1], observed.shape[2]
        self.deviation = noise[:, None, None] * observed.new_tensor([1.0, 1.0, 2.0])[: self.dimensions]
        self.observed = (observed / self.deviation).flatten(1)
        _, deviation, directions = torch.linalg.svd(sampler.identity.flatten(1), full_matrices=False)
        shape = (deviation[:, None] * directions)[:SHAPE_MODES]
        self.shape = shape.unflatten(-1, (NUM_LANDMARKS, 3))
        self.expression = start.expression.clone()
        self.walk = torch.cat([start.rotation, start.scale.log()[:, None]], dim=1)  # rotation and log scale
        self.history: list[torch.Tensor] = []
        self.generator = sampler.generator

    def mean(self, sweeps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Posterior means of what a re-targeted face consists of: `driven + turned · identity offsets of the reference`.
        The first quarter of the sweeps does not count.

        Returns:
            The identity's offsets from the mean face in cm, `(batch, 72, 3)`; `scale · R`, as rows of the picture,
            `(batch, 3, 3)`; and the landmarks of the mean shape with expression, pose and place, `(batch, 72, 3)`.
        """
        draws = [draw for number, draw in enumerate(self.draws(sweeps)) if number >= sweeps // 4]
        return tuple(torch.stack(part).mean(0) for part in zip(*draws))

    def draws(self, sweeps: int):
        """After each sweep, what `mean` takes the mean of."""
        for _ in range(sweeps):
            current = self._likelihood(self.walk, self.expression)[0]
            for _ in range(WALKS):
                current = self._walk_on(current)
            self._draw_expressions()
            shape, translation = self._likelihood(self.walk, self.expression)[1]
            turned = self._turn(self.walk)
            driven = self._mix(self.expression, self.sampler.expression) + self.sampler.mean
            yield self._mix(shape, self.shape), turned, driven @ turned.mT + translation[:, None]

    def most_probable_shape(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Given expression and pose as they are: a least-squares fit. The first two of what `mean` returns."""
        shape, _ = self._likelihood(self.walk, self.expression)[1]
        return self._mix(shape, self.shape), self._turn(self.walk)

    def _mix(self, coefficients: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        return (coefficients @ basis.flatten(1)).unflatten(-1, (NUM_LANDMARKS, 3))

    def _turn(self, walk: torch.Tensor) -> torch.Tensor:
        axes = walk.new_tensor([1.0, -1.0, 1.0])[:, None]
        return walk[:, 3:].exp()[..., None] * axes * rotation_matrix(torch.deg2rad(walk[:, :3]))

    def _design(self, walk: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """What each coefficient of a basis does to the observed points, in units of the noise: `(batch, modes, n)`."""
        turned = self._turn(walk)[:, : self.dimensions]
        moved = torch.einsum("bij,kpj->bkpi", turned, basis[:, : self.count])
        return (moved / self.deviation[:, None]).flatten(2)

    def _marginal(self, walk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Design of shape and translation (scaled to standard normal priors), and the factor of their precision."""
        shape = self._design(walk, self.shape)
        axes = torch.eye(self.dimensions, dtype=walk.dtype)[:, None].expand(-1, self.count, -1)
        place = (FREE * axes / self.deviation[:, None]).flatten(2)
        design = torch.cat([shape, place], dim=1)
        precision = torch.eye(design.shape[1], dtype=walk.dtype) + design @ design.mT
        return design, torch.linalg.cholesky(precision)

    def _residual(self, walk: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        neutral = self._design(walk, self.sampler.mean[None]).squeeze(1)
        moved = torch.einsum("bk,bkn->bn", expression, self._design(walk, self.sampler.expression))
        return self.observed - neutral - moved

    def _likelihood(self, walk: torch.Tensor, expression: torch.Tensor):
        """Log posterior of the walk (up to a constant), and the means of shape and translation given the state."""
        design, factor = self._marginal(walk)
        residual = self._residual(walk, expression)
        projected = torch.einsum("bkn,bn->bk", design, residual)[..., None]
        solved = torch.linalg.solve_triangular(factor, projected, upper=False)
        value = 0.5 * (solved.square().sum((1, 2)) - residual.square().sum(1))
        value = value - factor.diagonal(dim1=1, dim2=2).log().sum(1)
        value = value - 0.5 * (walk[:, :3] / walk.new_tensor(ROTATION_DEVIATION)).square().sum(1)
        value = value + walk[:, 3]  # a uniform scale, as a density of its logarithm
        means = torch.linalg.solve_triangular(factor.mT, solved, upper=True).squeeze(-1)
        modes = len(self.shape)
        place = torch.nn.functional.pad(FREE * means[:, modes:], (0, 3 - self.dimensions))
        return value, (means[:, :modes], place)

    def _walk_on(self, current: torch.Tensor) -> torch.Tensor:
        """A Metropolis step of rotation and scale. Takes and returns the log posterior of where the chains are."""
        batch = len(self.walk)
        noise = torch.randn(batch, 4, generator=self.generator, dtype=self.walk.dtype)
        if len(self.history) < 100:
            step = 0.5 * noise * self.walk.new_tensor(STEP)
        else:  # the shape of the posterior, as the chain has seen it (Haario et al., 2001)
            deviation = torch.stack(self.history[-500:])
            deviation = deviation - deviation.mean(0)
            covariance = torch.einsum("tbi,tbj->bij", deviation, deviation) / len(deviation)
            covariance = covariance + 1e-3 * torch.diag(self.walk.new_tensor(STEP).square())
            step = 2.38 / 2 * (torch.linalg.cholesky(covariance) @ noise[..., None]).squeeze(-1)
        proposal = self.walk + step
        candidate = self._likelihood(proposal, self.expression)[0]
        accept = self._uniform(batch).log() < candidate - current
        self.walk = torch.where(accept[:, None], proposal, self.walk)
        self.history.append(self.walk)
        return torch.where(accept, candidate, current)

    def _draw_expressions(self, sweeps: int = 3) -> None:
        """Gibbs sampling of each coefficient: nothing, or uniform times a Gaussian likelihood."""
        design, factor = self._marginal(self.walk)
        moves = self._design(self.walk, self.sampler.expression)
        residual = self._residual(self.walk, torch.zeros_like(self.expression))

        def solved(columns: torch.Tensor) -> torch.Tensor:
            return torch.linalg.solve_triangular(factor, design @ columns, upper=False)

        solved_moves, solved_residual = solved(moves.mT), solved(residual[..., None])
        gram = moves @ moves.mT - solved_moves.mT @ solved_moves
        target = (moves @ residual[..., None] - solved_moves.mT @ solved_residual).squeeze(-1)

        normal = torch.distributions.Normal(torch.zeros((), dtype=moves.dtype), torch.ones((), dtype=moves.dtype))
        gradient = target - torch.einsum("bij,bj->bi", gram, self.expression)
        for index in list(range(self.expression.shape[1])) * sweeps:
            precision = gram[:, index, index].clamp(min=1e-9)
            center = (gradient[:, index] + gram[:, index, index] * self.expression[:, index]) / precision
            low, high = -center * precision.sqrt(), (STRONGEST - center) * precision.sqrt()
            # Tails are taken on the side where they are precise.
            flip = low > 0
            below, above = normal.cdf(torch.where(flip, -high, low)), normal.cdf(torch.where(flip, -low, high))
            mass = (above - below).clamp(min=1e-300)
            odds = math.log(ACTIVE / STRONGEST / (1 - ACTIVE)) + 0.5 * (center.square() * precision) + mass.log()
            odds = odds + 0.5 * (2 * math.pi / precision).log()
            active = self._uniform(len(odds)) < torch.sigmoid(odds)
            draw = normal.icdf((below + mass * self._uniform(len(odds))).clamp(1e-300, 1 - 1e-16))
            draw = center + torch.where(flip, -draw, draw) / precision.sqrt()
            value = torch.where(active, draw.clamp(0, STRONGEST), 0)
            gradient = gradient - gram[:, :, index] * (value - self.expression[:, index])[:, None]
            self.expression[:, index] = value

    def _uniform(self, count: int) -> torch.Tensor:
        return torch.rand(count, generator=self.generator, dtype=self.walk.dtype)
