from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..errors import InputError

NUM_LANDMARKS = 72
SHIPPED_PREDICTOR = Path(__file__).parent.parent / "assets" / "landmark_predictor"


@dataclass
class FaceCoefficients:
    r"""
    What a set of landmarks says about faces: who (shape), doing what (expression), seen how (rotation, scale,
    translation). All tensors are batch first, on one device.

    Attributes:
        shape (`torch.Tensor` of shape `(batch, num_shape)`): Identity coefficients, standard normal over people.
        expression (`torch.Tensor` of shape `(batch, num_expressions)`): Strength of each expression in `[0, 1]`, in the
            order of the predictor's `config.expression_names`.
        rotation (`torch.Tensor` of shape `(batch, 3)`): Yaw, pitch and roll in degrees. As one sees it in the picture:
            yaw > 0 turns the nose to the right, pitch > 0 lifts it, roll > 0 tilts the head clockwise. The head turns
            about its own vertical axis (yaw), is then lifted (pitch) and then tilted in the image plane (roll).
        scale (`torch.Tensor` of shape `(batch,)`): Pixels per centimetre.
        translation (`torch.Tensor` of shape `(batch, 3)`): Where the head's origin, the centre of the mean face's 72
            landmarks, lies: x right, y down, z towards the camera, in pixels. From 2-D landmarks z is 0.
    """

    shape: torch.Tensor
    expression: torch.Tensor
    rotation: torch.Tensor
    scale: torch.Tensor
    translation: torch.Tensor

    def map(self, function) -> FaceCoefficients:
        """Applies a function to each of the tensors."""
        return FaceCoefficients(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def to(self, *args, **kwargs) -> FaceCoefficients:
        """Moves or casts each of the tensors, as `torch.Tensor.to`."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> FaceCoefficients:
        return self.map(torch.Tensor.detach)

    def __len__(self) -> int:
        return self.shape.shape[0]

    def __getitem__(self, index) -> FaceCoefficients:
        """Picks faces of the batch. An integer keeps the batch dimension, so that the result is a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        return self.map(lambda tensor: tensor[index])


class MirrorLinear(nn.Module):
    r"""
    A linear layer on features that are split by their symmetry: `even` ones stay the same when a face is mirrored, `odd`
    ones change their sign. As neither mixes into the other, mirroring the input mirrors the output, exactly, and half
    of a full matrix suffices. Only the even half can have a bias.

    Weights are cast to the dtype of the features.
    """

    def __init__(self, even_in: int, odd_in: int, even_out: int, odd_out: int):
        super().__init__()
        self.even = nn.Parameter(torch.randn(even_out, even_in) * even_in**-0.5)
        self.odd = nn.Parameter(torch.randn(odd_out, odd_in) * odd_in**-0.5)
        self.bias = nn.Parameter(torch.zeros(even_out))

    def forward(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = even.dtype
        return (
            F.linear(even, self.even.to(dtype), self.bias.to(dtype)),
            F.linear(odd, self.odd.to(dtype)),
        )


class MirrorBlock(nn.Module):
    r"""
    A residual block on even and odd features. Their sum and difference are what the face and its mirror image would
    give: norm and non-linearity act there, on both alike.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.norm = nn.Parameter(torch.ones(hidden_size))
        self.linear_in = MirrorLinear(hidden_size, hidden_size, hidden_size, hidden_size)
        self.linear_out = MirrorLinear(hidden_size, hidden_size, hidden_size, hidden_size)
        for parameter in self.linear_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_square = (even.square() + odd.square()).mean(dim=-1, keepdim=True)
        gain = torch.rsqrt(mean_square + 1e-6) * self.norm.to(even.dtype)
        hidden_even, hidden_odd = self.linear_in(even * gain, odd * gain)
        hidden_even, hidden_odd = mirror_gelu(hidden_even, hidden_odd)
        hidden_even, hidden_odd = self.linear_out(hidden_even, hidden_odd)
        return even + hidden_even, odd + hidden_odd


def mirror_gelu(even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    face, mirrored = F.gelu(even + odd), F.gelu(even - odd)
    return (face + mirrored) / 2, (face - mirrored) / 2


class LandmarkPredictor(ModelMixin, ConfigMixin):
    r"""
    Facial landmarks to the coefficients of a 3-D morphable model and back (the Landmark Predictor of FaceSnap, arXiv
    2602.00627, section 3.3), so that a person's proportions can be drawn in another pose and expression:

        landmarks = scale · R(rotation) · (mean + shape · shape_basis + expression · expression_basis) + translation

    with weak perspective (the projection drops z). Encoding is one forward pass: the points are brought to a common
    place, size and in-plane rotation; then a residual network, run `num_rounds` times with the same weights, sees the
    points, the coefficients so far and what these leave unexplained, and corrects the coefficients. It is trained to
    give what a re-targeted face needs: the posterior mean under the morphable model, not the closest fit.

    Moving, scaling, turning (in-plane) or mirroring the landmarks does the same to the result. Landmarks are in the
    iBUG order with two eyelid points more an eye (72), in pixels: x right, y down, z towards the camera. Everything is
    computed in the dtype of the landmarks, whatever that of the weights.

    Args:
        expression_names (`list[str]`): The morphable model's expressions. Names that differ in `_L`/`_R` or in
            `Left`/`Right` mirror each other.
        mirror (`list[int]`): For each of the 72 landmarks, its counterpart on the other side of the face.
        num_symmetric_shape (`int`): Shape coefficients that a mirrored face shares. They come first.
        num_asymmetric_shape (`int`): Shape coefficients that change their sign in a mirrored face.
        hidden_size (`int`): Width of the network, for each of its halves.
        num_layers (`int`): Residual blocks.
        num_rounds (`int`): How often the network corrects the coefficients.
    """

    @register_to_config
    def __init__(
        self,
        expression_names: list[str],
        mirror: list[int],
        num_symmetric_shape: int = 56,
        num_asymmetric_shape: int = 8,
        hidden_size: int = 256,
        num_layers: int = 3,
        num_rounds: int = 2,
    ):
        super().__init__()
        if sorted(mirror) != list(range(NUM_LANDMARKS)) or any(mirror[mirror[i]] != i for i in range(NUM_LANDMARKS)):
            raise InputError(f"mirror must pair up the landmarks 0 to {NUM_LANDMARKS - 1}; pass one index per landmark")
        num_shape = num_symmetric_shape + num_asymmetric_shape
        num_expressions = len(expression_names)
        self.register_buffer("mean", torch.zeros(NUM_LANDMARKS, 3))
        self.register_buffer("shape_basis", torch.zeros(num_shape, NUM_LANDMARKS, 3))
        self.register_buffer("expression_basis", torch.zeros(num_expressions, NUM_LANDMARKS, 3))
        self.register_buffer("expression_prior", torch.full((num_expressions,), 0.05))

        self._point_pairs = _pairs_and_singles(mirror)
        self._expression_pairs = _pairs_and_singles(_mirrored_expressions(expression_names))
        point_pairs, middle_points = len(self._point_pairs[0]), len(self._point_pairs[2])
        expression_pairs, single_expressions = len(self._expression_pairs[0]), len(self._expression_pairs[2])

        even_coefficients = num_symmetric_shape + expression_pairs + single_expressions + 4  # pitch, scale, y, z
        odd_coefficients = num_asymmetric_shape + expression_pairs + 3  # yaw, roll, x
        # Three vectors a point (position, residual, bounded residual) and its visibility; 1 for "is 3-D".
        even_features = 3 * (3 * point_pairs + 2 * middle_points) + point_pairs + middle_points + even_coefficients + 1
        odd_features = 3 * (3 * point_pairs + middle_points) + point_pairs + odd_coefficients
        self.proj_in = MirrorLinear(even_features, odd_features, hidden_size, hidden_size)
        self.blocks = nn.ModuleList([MirrorBlock(hidden_size) for _ in range(num_layers)])
        self.proj_out = MirrorLinear(hidden_size, hidden_size, even_coefficients, odd_coefficients)
        with torch.no_grad():
            self.proj_out.even.mul_(0.1)
            self.proj_out.odd.mul_(0.1)

    def forward(
        self, reference: torch.Tensor, driving: torch.Tensor, dimensions: int = 2
    ) -> torch.Tensor:
        """The same as [`LandmarkPredictor.retarget`]."""
        return self.retarget(reference, driving, dimensions)

    def retarget(
        self,
        reference: torch.Tensor | FaceCoefficients,
        driving: torch.Tensor | FaceCoefficients,
        dimensions: int = 2,
    ) -> torch.Tensor:
        r"""
        The reference's face shape with the driving face's expression, pose, scale and place.

        Args:
            reference (`torch.Tensor` or `FaceCoefficients`): Landmarks as for `encode`, or encoded ones.
            driving (`torch.Tensor` or `FaceCoefficients`): The same. One of the two may be a batch of one.
            dimensions (`int`): 2 or 3.

        Returns:
            `torch.Tensor` of shape `(batch, 72, dimensions)`: Landmarks in pixels of the driving picture.
        """
        if isinstance(reference, torch.Tensor):
            reference = self.encode(reference)
        if isinstance(driving, torch.Tensor):
            driving = self.encode(driving)
        if len(reference) != len(driving) and 1 not in (len(reference), len(driving)):
            raise InputError(
                f"reference has {len(reference)} faces and driving has {len(driving)}; give as many, or one of either"
            )
        batch = max(len(reference), len(driving))
        shape = reference.shape.expand(batch, -1)
        driving = driving.map(lambda tensor: tensor.expand(batch, *tensor.shape[1:]))
        return self.decode(dataclasses.replace(driving, shape=shape), dimensions)

    def decode(self, coefficients: FaceCoefficients, dimensions: int = 2) -> torch.Tensor:
        r"""
        The landmarks that coefficients describe.

        Args:
            coefficients (`FaceCoefficients`): Of a batch of faces.
            dimensions (`int`): 2, or 3 for depth as well (pixels, towards the camera).

        Returns:
            `torch.Tensor` of shape `(batch, 72, dimensions)`, in pixels.

        Raises:
            InputError: `dimensions` is neither 2 nor 3, or the coefficients are not this model's.
        """
        if dimensions not in (2, 3):
            raise InputError(f"dimensions must be 2 or 3, got {dimensions}")
        self._check_coefficients(coefficients)
        points = self._head(coefficients.shape, coefficients.expression)
        rotation = rotation_matrix(torch.deg2rad(coefficients.rotation))
        points = coefficients.scale[:, None, None] * points @ rotation.mT
        points = _flip_y(points) + coefficients.translation[:, None]
        return points[..., :dimensions]

    def encode(self, landmarks: torch.Tensor, visibility: torch.Tensor | None = None) -> FaceCoefficients:
        r"""
        The coefficients that landmarks speak of.

        Args:
            landmarks (`torch.Tensor` of shape `(batch, 68 or 72, 2 or 3)`): In pixels: x right, y down and, if given, z
                towards the camera (its origin does not matter). In the iBUG order, with the four eyelid points last.
            visibility (`torch.Tensor` of shape `(batch, 68 or 72)`, *optional*): True (or 1) for points to trust. Points
                with False (or 0) may have any value, NaN included.

        Returns:
            `FaceCoefficients`, in the dtype of the landmarks.

        Raises:
            InputError: A wrong shape or dtype, a visible point that is not finite, or fewer than six visible points.
        """
        points, visible = self._check_landmarks(landmarks, visibility)
        is_3d = landmarks.shape[-1] == 3
        points, angle, scale, origin = self._canonicalise(points, visible, is_3d)

        batch, dtype = points.shape[0], points.dtype
        shape = points.new_zeros(batch, self.shape_basis.shape[0])
        expression = torch.logit(self.expression_prior.to(dtype)).expand(batch, -1)
        rotation = points.new_zeros(batch, 3)
        log_scale = points.new_zeros(batch, 1)
        translation = points.new_zeros(batch, 3)
        for _ in range(self.config.num_rounds):
            head = self._head(shape, expression.sigmoid())
            matrix = rotation_matrix(rotation)
            fitted = log_scale.exp()[..., None] * head @ matrix.mT + translation[:, None]
            residual = (points - fitted) * visible
            if not is_3d:
                residual = F.pad(residual[..., :2], (0, 1))
            corrections = self._correct(
                points, residual @ matrix, visible, is_3d, shape, expression, rotation, log_scale, translation
            )
            shape, expression, rotation, log_scale, translation = (
                value + correction
                for value, correction in zip((shape, expression, rotation, log_scale, translation), corrections)
            )

        # Back from the canonical frame: its in-plane rotation only adds to the roll, which comes last.
        if not is_3d:
            translation = translation * translation.new_tensor([1, 1, 0])
        translation = _flip_y(scale[:, None] * _rotate_in_plane(translation[:, None], angle).squeeze(1) + origin)
        yaw, pitch, roll = rotation.unbind(-1)
        roll = torch.remainder(roll - angle + math.pi, 2 * math.pi) - math.pi
        return FaceCoefficients(
            shape=shape,
            expression=expression.sigmoid(),
            rotation=torch.rad2deg(torch.stack([yaw, pitch, roll], dim=-1)),
            scale=scale * log_scale.squeeze(-1).exp(),
            translation=translation,
        )

    def _head(self, shape: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """Landmarks in the head's own frame, in cm: x to the person's left, y up, z forward."""
        offsets = shape @ self.shape_basis.to(shape.dtype).flatten(1)
        offsets = offsets + expression @ self.expression_basis.to(shape.dtype).flatten(1)
        return self.mean.to(shape.dtype) + offsets.unflatten(-1, (NUM_LANDMARKS, 3))

    def _canonicalise(
        self, points: torch.Tensor, visible: torch.Tensor, is_3d: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Moves, turns (in-plane) and scales points onto the mean face: `points = scale · turn(angle) · result + origin`."""
        template = self.mean.to(points.dtype)
        weight = visible / visible.sum(dim=1, keepdim=True)
        centre, template_centre = (weight * points).sum(dim=1), (weight * template).sum(dim=1)
        x, y, z = ((points - centre[:, None]) * weight.sqrt()).unbind(-1)
        u, v, w = ((template - template_centre[:, None]) * weight.sqrt()).unbind(-1)
        angle = torch.atan2((u * y - v * x).sum(1), (u * x + v * y).sum(1))
        scale = torch.sqrt((x.square() + y.square()).sum(1) / (u.square() + v.square()).sum(1))

        canonical = _rotate_in_plane((points - centre[:, None]) / scale[:, None, None], -angle)
        canonical = canonical + template_centre[:, None]
        origin = centre - scale[:, None] * _rotate_in_plane(template_centre[:, None], angle).squeeze(1)
        if not is_3d:
            canonical = F.pad(canonical[..., :2], (0, 1))
            origin = F.pad(origin[..., :2], (0, 1))
        return canonical * visible, angle, scale, origin

    def _correct(
        self,
        points: torch.Tensor,
        residual: torch.Tensor,
        visible: torch.Tensor,
        is_3d: bool,
        shape: torch.Tensor,
        expression: torch.Tensor,
        rotation: torch.Tensor,
        log_scale: torch.Tensor,
        translation: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        deviation = (points - self.mean.to(points.dtype)) * visible
        if not is_3d:
            deviation = F.pad(deviation[..., :2], (0, 1))
        # An outlier must not drown the rest: beyond some millimetres only the direction counts.
        bounded = residual / (residual.norm(dim=-1, keepdim=True) + 0.3)

        features = [self._split_points(deviation), self._split_points(2 * residual), self._split_points(2 * bounded)]
        left, right, middle = self._point_pairs
        visible = visible.squeeze(-1)
        features.append(
            (
                torch.cat([(visible[:, left] + visible[:, right]) / 2, visible[:, middle]], dim=-1),
                (visible[:, left] - visible[:, right]) / 2,
            )
        )
        left, right, middle = self._expression_pairs
        features.append(
            (
                torch.cat([(expression[:, left] + expression[:, right]) / 2, expression[:, middle]], dim=-1),
                (expression[:, left] - expression[:, right]) / 2,
            )
        )
        yaw, pitch, roll = rotation.split(1, dim=-1)
        x, y, z = translation.split(1, dim=-1)
        symmetric_shape, asymmetric_shape = shape.split(
            [self.config.num_symmetric_shape, self.config.num_asymmetric_shape], dim=-1
        )
        dimensionality = torch.full_like(pitch, float(is_3d))
        features.append(
            (
                torch.cat([symmetric_shape, 3 * pitch, 3 * log_scale, y, z, dimensionality], dim=-1),
                torch.cat([asymmetric_shape, 3 * yaw, 3 * roll, x], dim=-1),
            )
        )

        even = torch.cat([pair[0] for pair in features], dim=-1)
        odd = torch.cat([pair[1] for pair in features], dim=-1)
        even, odd = self.proj_in(even, odd)
        even, odd = mirror_gelu(even, odd)
        for block in self.blocks:
            even, odd = block(even, odd)
        even, odd = self.proj_out(even, odd)

        pairs, singles = len(left), len(middle)
        symmetric_shape, even_expression, single_expression, pitch, log_scale, y, z = even.split(
            [self.config.num_symmetric_shape, pairs, singles, 1, 1, 1, 1], dim=-1
        )
        asymmetric_shape, odd_expression, yaw, roll, x = odd.split(
            [self.config.num_asymmetric_shape, pairs, 1, 1, 1], dim=-1
        )
        expression = torch.zeros_like(expression)
        expression[:, left] = even_expression + odd_expression
        expression[:, right] = even_expression - odd_expression
        expression[:, middle] = single_expression
        return (
            torch.cat([symmetric_shape, asymmetric_shape], dim=-1),
            expression,
            torch.cat([yaw, pitch, roll], dim=-1) / 3,
            log_scale / 3,
            torch.cat([x, y, z], dim=-1),
        )

    def _split_points(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Even and odd parts of a vector per landmark; mirroring swaps the sides and negates x."""
        left, right, middle = self._point_pairs
        mirrored = vectors[:, right] * vectors.new_tensor([-1, 1, 1])
        even = ((vectors[:, left] + mirrored) / 2).flatten(1)
        odd = ((vectors[:, left] - mirrored) / 2).flatten(1)
        middle = vectors[:, middle]
        return torch.cat([even, middle[..., 1:].flatten(1)], dim=-1), torch.cat([odd, middle[..., 0]], dim=-1)

    def _check_landmarks(
        self, landmarks: torch.Tensor, visibility: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks as `(batch, 72, 3)` with y up and visibility as `(batch, 72, 1)`; what is not seen is 0."""
        if landmarks.ndim != 3 or landmarks.shape[1] not in (68, 72) or landmarks.shape[2] not in (2, 3):
            raise InputError(f"landmarks must have shape (batch, 68 or 72, 2 or 3), got {tuple(landmarks.shape)}")
        if landmarks.dtype not in (torch.float32, torch.float64):
            raise InputError(f"landmarks must be float32 or float64, got {landmarks.dtype}; convert them first")
        if visibility is None:
            visibility = landmarks.new_ones(landmarks.shape[:2])
        elif visibility.shape != landmarks.shape[:2]:
            raise InputError(
                f"visibility must have shape {tuple(landmarks.shape[:2])} as the landmarks, got {tuple(visibility.shape)}"
            )
        visible = visibility.to(landmarks.dtype)[..., None]
        points = torch.where(visible > 0, landmarks, 0)
        if not torch.isfinite(points).all():
            raise InputError("landmarks has points that are not finite; fix them or mark them in visibility as False")
        if landmarks.shape[0] > 0 and (visible > 0).sum(dim=1).min() < 6:
            raise InputError("visibility leaves a face with fewer than six points; six or more are needed")
        missing = NUM_LANDMARKS - landmarks.shape[1]
        points = F.pad(_flip_y(points), (0, 3 - landmarks.shape[2], 0, missing))
        return points, F.pad(visible, (0, 0, 0, missing))

    def _check_coefficients(self, coefficients: FaceCoefficients) -> None:
        batch = coefficients.shape.shape[0]
        expected = {
            "shape": (batch, self.shape_basis.shape[0]),
            "expression": (batch, self.expression_basis.shape[0]),
            "rotation": (batch, 3),
            "scale": (batch,),
            "translation": (batch, 3),
        }
        for name, shape in expected.items():
            got = tuple(getattr(coefficients, name).shape)
            if got != shape:
                raise InputError(f"coefficients.{name} must have shape {shape}, got {got}; encode with this predictor")


def load_landmark_predictor() -> LandmarkPredictor:
    """The predictor that ships with the package, in float32 on the CPU, ready for use. Nothing is downloaded."""
    return LandmarkPredictor.from_pretrained(SHIPPED_PREDICTOR, dtype=torch.float32, local_files_only=True).eval()


def rotation_matrix(rotation: torch.Tensor) -> torch.Tensor:
    r"""
    The matrix `R = Rz(-roll) · Rx(-pitch) · Ry(yaw)` in a right-handed frame with x right, y up and z to the camera.

    Args:
        rotation (`torch.Tensor` of shape `(batch, 3)`): Yaw, pitch, roll in radians, signs as in `FaceCoefficients`.

    Returns:
        `torch.Tensor` of shape `(batch, 3, 3)`.
    """
    (yaw_sin, pitch_sin, roll_sin), (yaw_cos, pitch_cos, roll_cos) = rotation.sin().unbind(-1), rotation.cos().unbind(-1)
    rows = [
        roll_cos * yaw_cos + roll_sin * pitch_sin * -yaw_sin,
        roll_sin * pitch_cos,
        roll_cos * yaw_sin + roll_sin * pitch_sin * yaw_cos,
        -roll_sin * yaw_cos + roll_cos * pitch_sin * -yaw_sin,
        roll_cos * pitch_cos,
        -roll_sin * yaw_sin + roll_cos * pitch_sin * yaw_cos,
        pitch_cos * -yaw_sin,
        -pitch_sin,
        pitch_cos * yaw_cos,
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _rotate_in_plane(points: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turns points `(batch, points, 3)` counter-clockwise (y up) by an angle in radians."""
    x, y, z = points.unbind(-1)
    sin, cos = angle.sin()[:, None], angle.cos()[:, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)


def _flip_y(points: torch.Tensor) -> torch.Tensor:
    """Pixels have y down, the head's frame has y up."""
    return torch.cat([points[..., :1], -points[..., 1:2], points[..., 2:]], dim=-1)


def _mirrored_expressions(names: list[str]) -> list[int]:
    swapped = {"_L": "_R", "_R": "_L", "Left": "Right", "Right": "Left"}
    counterparts = []
    for name in names:
        for side, other in swapped.items():
            if name.endswith(side):
                name = name.removesuffix(side) + other
                break
        counterparts.append(names.index(name))
    return counterparts


def _pairs_and_singles(mirror: list[int]) -> tuple[list[int], list[int], list[int]]:
    left = [index for index, other in enumerate(mirror) if index < other]
    right = [mirror[index] for index in left]
    return left, right, [index for index, other in enumerate(mirror) if index == other]
