"""The landmark predictor: from landmarks to shape, expression and pose of a face, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import is_accelerate_available
from torch import nn

from ..errors import InputError


NUM_LANDMARKS = 72
NUM_EVEN_GATES = 3  # functions of the pose that a mirrored face shares
HINGES = (-0.1, 0.0, 0.05, 0.1, 0.2, 0.35, 0.5)
OUTLIER = 1.0  # cm: a point this far off counts half
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
        scale (`torch.Tensor` of shape `(batch,)`): Pixels per centimeter.
        translation (`torch.Tensor` of shape `(batch, 3)`): Where the head's origin, the center of the mean face's 72
            landmarks, lies: x right, y down, z toward the camera, in pixels. From 2-D landmarks z is 0.
    """

    shape: torch.Tensor
    expression: torch.Tensor
    rotation: torch.Tensor
    scale: torch.Tensor
    translation: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> FaceCoefficients:
        """Applies a function to each of the tensors."""
        return FaceCoefficients(*(function(getattr(self, field.name)) for field in dataclasses.fields(self)))

    def to(self, *args: Any, **kwargs: Any) -> FaceCoefficients:
        """Moves or casts each of the tensors, as `torch.Tensor.to`."""
        return self.map(lambda tensor: tensor.to(*args, **kwargs))

    def detach(self) -> FaceCoefficients:
        return self.map(torch.Tensor.detach)

    def __len__(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> FaceCoefficients:
        """Picks faces of the batch. An integer keeps the batch dimension, so that the result is a batch of one."""
        if isinstance(index, int):
            index = slice(index, index + 1) if index != -1 else slice(index, None)
        return self.map(lambda tensor: tensor[index])


class MirrorLinear(nn.Module):
    r"""
    A linear layer on features that are split by their symmetry: `even` ones stay the same when a face is mirrored, `odd`
    ones change their sign. As neither mixes into the other, mirroring the input mirrors the output, exactly, and half
    of a full matrix suffices. There is no bias, which would be even: a constant feature does its work.
    """

    def __init__(self, even_in: int, odd_in: int, even_out: int, odd_out: int):
        super().__init__()
        self.even = nn.Parameter(torch.randn(even_out, even_in) * even_in**-0.5)
        self.odd = nn.Parameter(torch.randn(odd_out, odd_in) * odd_in**-0.5)

    def forward(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.linear(even, _like(self.even, even)), F.linear(odd, _like(self.odd, odd))


class MirrorBlock(nn.Module):
    """A residual block on even and odd features."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_in = MirrorLinear(hidden_size, hidden_size, hidden_size, hidden_size)
        self.linear_out = MirrorLinear(hidden_size, hidden_size, hidden_size, hidden_size)
        _set_to_zero(self.linear_out)

    def forward(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        even_residual, odd_residual = self.linear_out(*mirror_silu(*self.linear_in(even, odd)))
        return even + even_residual, odd + odd_residual


def mirror_silu(even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum and difference are what the face and its mirror image would give: the non-linearity acts there, alike."""
    face, mirrored = F.silu(even + odd), F.silu(even - odd)
    return face + mirrored, face - mirrored


#: Root mean square of what a reconstruction misses of a face by the noise of its landmarks alone, in centimeters.
NOISE = 0.2

#: A change of pose over which what the reconstruction misses fades to what stands out from that noise, in degrees.
FADING_ANGLE = 2.5


class LandmarkPredictor(ModelMixin, ConfigMixin):
    r"""
    Facial landmarks to the coefficients of a 3-D morphable model and back (the Landmark Predictor of FaceSnap, arXiv
    2602.00627, section 3.3), so that a person's proportions can be drawn in another pose and expression:

        landmarks = scale · R(rotation) · (mean + shape · shape_basis + expression · expression_basis) + translation

    with weak perspective (the projection drops z). Encoding is one forward pass: the points are brought to a common
    place, size and in-plane rotation; a few linear regressions, each from what the coefficients so far leave unexplained,
    come near; then a residual network sees the points, these coefficients and what is still unexplained, and corrects
    them. It is trained to give what a re-targeted face needs: the posterior mean under the morphable model, not the
    closest fit.

    Moving, scaling, turning (in-plane) or mirroring the landmarks does the same to the result. Landmarks are in the
    iBUG order with two eyelid points more an eye (72), in pixels: x right, y down, z toward the camera. Everything is
    computed in float32, or in float64 if the landmarks are. The weights are float32 and stay so: casting the predictor,
    or a pipeline that holds it, to half precision leaves them as they are.

    Args:
        expression_names (`list[str]`): The morphable model's expressions. Names that differ in `_L`/`_R` or in
            `Left`/`Right` mirror each other.
        mirror (`list[int]`): For each of the 72 landmarks, its counterpart on the other side of the face.
        num_symmetric_shape (`int`): Shape coefficients that a mirrored face shares. They come first.
        num_asymmetric_shape (`int`): Shape coefficients that change their sign in a mirrored face.
        hidden_size (`int`): Width of the network, for each of its halves.
        num_layers (`int`): Residual blocks.
        num_stages (`int`): Linear regressions with pose and hinges that precede the network.
    """

    @register_to_config
    def __init__(
        self,
        expression_names: list[str],
        mirror: list[int],
        num_symmetric_shape: int = 48,
        num_asymmetric_shape: int = 16,
        hidden_size: int = 184,
        num_layers: int = 2,
        num_stages: int = 2,
    ):
        super().__init__()
        if sorted(mirror) != list(range(NUM_LANDMARKS)) or any(mirror[mirror[i]] != i for i in range(NUM_LANDMARKS)):
            raise InputError(
                f"mirror must pair up the landmarks 0 to {NUM_LANDMARKS - 1}; pass one index per landmark"
            )
        num_shape = num_symmetric_shape + num_asymmetric_shape
        num_expressions = len(expression_names)
        self.register_buffer("mean", torch.zeros(NUM_LANDMARKS, 3))
        self.register_buffer("shape_basis", torch.zeros(num_shape, NUM_LANDMARKS, 3))
        self.register_buffer("expression_basis", torch.zeros(num_expressions, NUM_LANDMARKS, 3))

        # Landmarks and expressions in the order left sides, right sides, singles.
        left, right, middle = _pairs_and_singles(mirror)
        self.num_pairs = len(left)
        self.register_buffer("point_order", torch.tensor(left + right + middle), persistent=False)
        left_expressions, right_expressions, single_expressions = _pairs_and_singles(_counterparts(expression_names))
        expression_order = torch.tensor(left_expressions + right_expressions + single_expressions)
        self.register_buffer("expression_order", expression_order, persistent=False)
        self.num_expression_pairs, self.num_single_expressions = len(left_expressions), len(single_expressions)

        # What the network corrects: yaw, roll and x are odd, pitch, scale, y and z are even.
        self.num_even = num_symmetric_shape + self.num_expression_pairs + self.num_single_expressions + 4
        self.num_odd = num_asymmetric_shape + self.num_expression_pairs + 3
        # Features of the stages: x, y, z of the points, gates of the pose, hinges of the expressions.
        even_axes, odd_axes = 3 * len(left) + 2 * len(middle), 3 * len(left) + len(middle)
        even_hinges = len(HINGES) * (self.num_expression_pairs + self.num_single_expressions)
        odd_hinges = len(HINGES) * self.num_expression_pairs
        even_stage = (even_axes + 1, NUM_EVEN_GATES * (even_axes + 1) + odd_axes + self.num_even + even_hinges)
        odd_stage = (odd_axes, NUM_EVEN_GATES * odd_axes + even_axes + 1 + self.num_odd + odd_hinges)
        self.stages_2d, self.stages_3d = (
            nn.ModuleList(
                MirrorLinear(even_stage[stage > 0], odd_stage[stage > 0], self.num_even, self.num_odd)
                for stage in range(1 + num_stages)
            )
            for _ in range(2)
        )
        # The network sees position, residual, bounded residual and visibility of each point, the coefficients so far
        # with their hinges, whether there is depth, and a constant.
        self.proj_in = MirrorLinear(
            even_in=3 * even_axes + len(left) + len(middle) + self.num_even + even_hinges + 2,
            odd_in=3 * odd_axes + len(left) + self.num_odd + odd_hinges,
            even_out=hidden_size,
            odd_out=hidden_size,
        )
        self.blocks = nn.ModuleList([MirrorBlock(hidden_size) for _ in range(num_layers)])
        self.proj_out = MirrorLinear(hidden_size, hidden_size, self.num_even, self.num_odd)
        for layer in (*self.stages_2d, *self.stages_3d, self.proj_out):
            _set_to_zero(layer)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in `ModelMixin`; the weights are float32 whatever `dtype` says."""
        # without accelerate, the default of `low_cpu_mem_usage` advises to install it
        kwargs = {"low_cpu_mem_usage": is_accelerate_available(), **kwargs, "dtype": torch.float32}
        loaded = super().from_pretrained(*args, **kwargs)
        # Tensors of a safetensors file lie in memory as they do in the file. Unaligned, they go through other kernels
        # than aligned ones, and the same weights would give landmarks that differ in the last bits.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._apply(torch.Tensor.clone)
        return loaded

    def _apply(self, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LandmarkPredictor:
        # Every move and cast comes through here. In half precision the morphable model would be off by up to a pixel.
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = function(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def enable_group_offload(self, onload_device: torch.device, **kwargs: Any) -> None:
        """Moves the predictor to `onload_device`, where it stays: hooks on `forward` would miss `encode` and `decode`."""
        self.to(onload_device)

    def forward(self, reference: torch.Tensor, driving: torch.Tensor, dimensions: int = 2) -> torch.Tensor:
        """The same as [`LandmarkPredictor.retarget`]."""
        return self.retarget(reference, driving, dimensions)

    def repose(self, seen: torch.Tensor, own: FaceCoefficients, target: FaceCoefficients) -> torch.Tensor:
        r"""
        Landmarks of faces in another pose or expression, with what their reconstruction misses: it follows in the face's own
        frame. In the pose and expression that they have, these are the landmarks that were seen.

        The less the reconstruction misses, the more of that is noise. So a face that turns away takes along the share
        `1 - (NOISE / missed)²` of it (a Wiener filter), and all of it only near its own pose.

        Args:
            seen (`torch.Tensor` of shape `(batch, 68 | 72, 2 | 3)`): The faces' own landmarks, in pixels.
            own ([`FaceCoefficients`]): What [`encode`] made of them.
            target ([`FaceCoefficients`]): What they are to look like.

        Returns:
            `torch.Tensor` of shape `(batch, 72, 2)`: in pixels of the target.
        """
        missed = seen[..., :2] - self.decode(own)[:, : seen.shape[1]]
        if seen.shape[1] == 68:  # eyelid points go with the corner of their eye
            missed = torch.cat([missed, missed[:, [36, 36, 45, 45]]], dim=1)  # (batch, 72, 2)
        return self.decode(target) + self.carry(missed, own, target)

    def carry(self, missed: torch.Tensor, own: FaceCoefficients, target: FaceCoefficients) -> torch.Tensor:
        r"""
        What a reconstruction misses of points of a face, in another pose: turned with the face, as [`repose`] says.

        Args:
            missed (`torch.Tensor` of shape `(batch, points, 2)`): What was seen less what was decoded, in pixels.
            own ([`FaceCoefficients`]): Of the faces that were seen.
            target ([`FaceCoefficients`]): What they are to look like.

        Returns:
            `torch.Tensor` of shape `(batch, points, 2)`: to be added to what the target decodes to, in pixels of it.
        """
        rotation, target_rotation = (
            rotation_matrix(torch.deg2rad(c.rotation)) for c in (own, target)
        )  # (batch, 3, 3)
        turn = target_rotation @ rotation.mT
        space = F.pad(missed * missed.new_tensor([1, -1]), (0, 1))  # (batch, points, 3), y up
        space = space / own.scale[:, None, None]  # in centimeters

        size = space.square().sum(-1).mean(-1).sqrt()  # (batch,)
        kept = (1 - (NOISE / size.clamp(min=NOISE)).square()).clamp(min=0)
        cosine = (turn.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2
        angle = torch.rad2deg(cosine.clamp(-1, 1).acos())
        weight = kept + (1 - kept) * torch.exp(-(angle / FADING_ANGLE).square())
        moved = (space @ turn.mT)[..., :2] * missed.new_tensor([1, -1]) * target.scale[:, None, None]
        return weight[:, None, None] * moved

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
            dimensions (`int`): 2, or 3 for depth as well (pixels, toward the camera).

        Returns:
            `torch.Tensor` of shape `(batch, 72, dimensions)`, in pixels.

        Raises:
            InputError: `dimensions` is neither 2 nor 3, or the coefficients are not this model's.
        """
        if dimensions not in (2, 3):
            raise InputError(f"dimensions must be 2 or 3, got {dimensions}")
        self._check_coefficients(coefficients)
        coefficients = coefficients.map(_at_least_single)
        points = self._head(coefficients.shape, coefficients.expression)  # (batch, 72, 3)
        rotation = rotation_matrix(torch.deg2rad(coefficients.rotation))  # (batch, 3, 3)
        points = coefficients.scale[:, None, None] * points @ rotation.mT
        points = _flip_y(points) + coefficients.translation[:, None]
        return points[..., :dimensions]

    def encode(self, landmarks: torch.Tensor, visibility: torch.Tensor | None = None) -> FaceCoefficients:
        r"""
        The coefficients that landmarks speak of.

        Args:
            landmarks (`torch.Tensor` of shape `(batch, 68 or 72, 2 or 3)`): In pixels: x right, y down and, if given, z
                toward the camera (its origin does not matter). In the iBUG order, with the four eyelid points last.
            visibility (`torch.Tensor` of shape `(batch, 68 or 72)`, *optional*): True (or 1) for points to trust. Points
                with False (or 0) may have any value, NaN included.

        Returns:
            `FaceCoefficients`, in float32 (float64 for float64 landmarks).

        Raises:
            InputError: A wrong shape or dtype, a visible point that is not finite, or fewer than six visible points.
        """
        points, visible = self._check_landmarks(landmarks, visibility)
        is_3d = landmarks.shape[-1] == 3
        points, angle, scale, origin = self._canonicalize(points, visible)
        # the axes along which points are seen
        seen = torch.cat([visible, visible, visible * is_3d], dim=-1)  # (batch, 72, 3)

        deviation = (points - _like(self.mean, points)) * seen  # (batch, 72, 3)
        basis = self._split_basis(points.dtype)
        first, *later_stages = self.stages_3d if is_3d else self.stages_2d
        even, odd = first(*self._start_features(deviation))  # (batch, even coefficients), (batch, odd coefficients)
        for stage in later_stages:
            even_correction, odd_correction = stage(*self._stage_features(points, seen, even, odd, basis))
            even, odd = even + even_correction, odd + odd_correction
        even_correction, odd_correction = self._network(points, deviation, seen, visible, is_3d, even, odd, basis)
        even, odd = even + even_correction, odd + odd_correction
        shape, expression, rotation, canonical_scale, translation = self._unpack(even, odd)

        # Back from the canonical frame: its in-plane rotation only adds to the roll, which comes last.
        translation = scale[:, None] * _rotate_in_plane(translation[:, None], angle).squeeze(1) + origin
        if not is_3d:
            translation = F.pad(translation[:, :2], (0, 1))
        yaw, pitch, roll = rotation.unbind(-1)
        roll = torch.remainder(roll - angle + math.pi, 2 * math.pi) - math.pi
        return FaceCoefficients(
            shape=shape,
            expression=expression.clamp(0, 1),
            rotation=torch.rad2deg(torch.stack([yaw, pitch, roll], dim=-1)),
            scale=scale * canonical_scale.squeeze(-1),
            translation=_flip_y(translation),
        )

    def _head(self, shape: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """Landmarks in the head's own frame, in cm: x to the person's left, y up, z forward."""
        offsets = shape @ _like(self.shape_basis, shape).flatten(1)  # (batch, 216)
        offsets = offsets + expression @ _like(self.expression_basis, shape).flatten(1)
        return _like(self.mean, shape) + offsets.unflatten(-1, (NUM_LANDMARKS, 3))

    def _canonicalize(
        self, points: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Moves, turns (in-plane) and scales points onto the mean face: `points = scale · turn(angle) · result + origin`."""
        template = _like(self.mean, points)
        weight = visible / visible.sum(dim=1, keepdim=True)  # (batch, 72, 1)
        center, template_center = (weight * points).sum(dim=1), (weight * template).sum(dim=1)  # (batch, 3) each
        x, y, _z = ((points - center[:, None]) * weight.sqrt()).unbind(-1)
        u, v, _w = ((template - template_center[:, None]) * weight.sqrt()).unbind(-1)
        angle = torch.atan2((u * y - v * x).sum(1), (u * x + v * y).sum(1))  # (batch,)
        scale = torch.sqrt((x.square() + y.square()).sum(1) / (u.square() + v.square()).sum(1))  # (batch,)

        canonical = _rotate_in_plane((points - center[:, None]) / scale[:, None, None], -angle)
        canonical = canonical + template_center[:, None]  # (batch, 72, 3)
        origin = center - scale[:, None] * _rotate_in_plane(template_center[:, None], angle).squeeze(1)
        return canonical, angle, scale, origin

    def _unpack(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Shape, expression, rotation (radians), scale and translation (cm, y up) from their even and odd parts."""
        pairs, singles = self.num_expression_pairs, self.num_single_expressions
        symmetric_shape, both_sides, single, pitch, log_scale, y, z = even.split(
            [self.config.num_symmetric_shape, pairs, singles, 1, 1, 1, 1], dim=-1
        )
        asymmetric_shape, one_side, yaw, roll, x = odd.split(
            [self.config.num_asymmetric_shape, pairs, 1, 1, 1], dim=-1
        )
        expression = torch.cat([both_sides + one_side, both_sides - one_side, single], dim=-1)
        expression = expression.index_select(-1, self.expression_order.argsort())  # (batch, expressions)
        shape = torch.cat([symmetric_shape, asymmetric_shape], dim=-1)  # (batch, shapes)
        # A third of a radian and a scale of exp(1/3) are about as usual as a unit of the others.
        rotation = torch.cat([yaw, pitch, roll], dim=-1) / 3
        return shape, expression, rotation, (log_scale / 3).exp(), torch.cat([x, y, z], dim=-1)

    def _start_features(self, deviation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the points are, and a constant."""
        even, odd = self._split(deviation, num_odd=1)
        return torch.cat([even, even.new_ones(even.shape[0], 1)], dim=-1), odd

    def _split_basis(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What even and odd coefficients do to the landmarks in the head's frame."""
        symmetric, asymmetric = self.shape_basis.flatten(1).split(
            [self.config.num_symmetric_shape, self.config.num_asymmetric_shape]
        )
        left, right, single = (
            self.expression_basis.flatten(1)
            .index_select(0, self.expression_order)
            .split([self.num_expression_pairs, self.num_expression_pairs, self.num_single_expressions])
        )
        even, odd = torch.cat([symmetric, left + right, single]), torch.cat([asymmetric, left - right])
        return even.to(dtype), odd.to(dtype)

    def _residual(
        self,
        points: torch.Tensor,
        seen: torch.Tensor,
        even: torch.Tensor,
        odd: torch.Tensor,
        basis: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the coefficients leave unexplained of the points, turned into the head's frame; and the rotation."""
        head = torch.addmm(_like(self.mean, points).flatten(), even[:, :-4], basis[0])
        head = torch.addmm(head, odd[:, :-3], basis[1]).unflatten(-1, (NUM_LANDMARKS, 3))  # (batch, 72, 3)
        pitch, log_scale, y, z = even[:, -4:].split(1, dim=-1)
        yaw, roll, x = odd[:, -3:].split(1, dim=-1)
        rotation = torch.cat([yaw, pitch, roll], dim=-1) / 3
        matrix = rotation_matrix(rotation)  # (batch, 3, 3)
        scale, translation = (log_scale / 3).exp()[..., None], torch.cat([x, y, z], dim=-1)[:, None]
        return (points - torch.baddbmm(translation, scale * head, matrix.mT)) * seen @ matrix, rotation

    def _stage_features(
        self,
        points: torch.Tensor,
        seen: torch.Tensor,
        even: torch.Tensor,
        odd: torch.Tensor,
        basis: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual times functions of the pose, as how a coefficient moves the points depends on it."""
        residual, rotation = self._residual(points, seen, even, odd, basis)
        # A point that is far off says little: nearly all of it is an outlier.
        residual = residual / (1 + residual.square().sum(dim=-1, keepdim=True) / OUTLIER**2)  # (batch, 72, 3)
        even_residual, odd_residual = self._split(residual, num_odd=1)
        constant = even.new_ones(even.shape[0], 1)
        even_residual = torch.cat([even_residual, constant], dim=-1)
        yaw_sin, pitch_sin, _ = rotation.sin().split(1, dim=-1)
        yaw_turn = 1 - rotation[:, :1].cos()
        even_hinges, odd_hinges = self._hinges(even, odd)
        even_features = [even_residual, yaw_turn * even_residual, pitch_sin * even_residual, yaw_sin * odd_residual]
        odd_features = [odd_residual, yaw_turn * odd_residual, pitch_sin * odd_residual, yaw_sin * even_residual]
        return (
            torch.cat([*even_features, even, even_hinges], dim=-1),
            torch.cat([*odd_features, odd, odd_hinges], dim=-1),
        )

    def _hinges(self, even: torch.Tensor, odd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Piecewise linear functions of each expression. Most expressions of a face are exactly 0: what looks weak is
        probably noise, what looks strong is not.
        """
        first, pairs, singles = self.config.num_symmetric_shape, self.num_expression_pairs, self.num_single_expressions
        both_sides, single = even[:, first : first + pairs], even[:, first + pairs : first + pairs + singles]
        one_side = odd[:, self.config.num_asymmetric_shape :][:, :pairs]
        expression = torch.cat([both_sides + one_side, both_sides - one_side, single], dim=-1)
        hinges = (expression[:, None] - expression.new_tensor(HINGES)[:, None]).relu()  # (batch, knots, expressions)
        left, right, single = hinges.split([pairs, pairs, singles], dim=-1)
        return torch.cat([left + right, single], dim=-1).flatten(1), (left - right).flatten(1)

    def _network(
        self,
        points: torch.Tensor,
        deviation: torch.Tensor,
        seen: torch.Tensor,
        visible: torch.Tensor,
        is_3d: bool,
        even: torch.Tensor,
        odd: torch.Tensor,
        basis: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        residual, _ = self._residual(points, seen, even, odd, basis)
        # An outlier must not drown the rest: beyond some millimeters only a residual's direction counts.
        bounded = residual / (torch.linalg.vector_norm(residual, dim=-1, keepdim=True) + 0.3)
        vectors = torch.stack([deviation, 2 * residual, 2 * bounded], dim=-1).flatten(
            2
        )  # (batch, 72, 9): all x, all y, all z
        even_points, odd_points = self._split(torch.cat([vectors, visible], dim=-1), num_odd=3)
        constant = even.new_ones(even.shape[0], 1)
        even_hinges, odd_hinges = self._hinges(even, odd)
        even_features = torch.cat([even_points, even, even_hinges, constant * is_3d, constant], dim=-1)
        odd_features = torch.cat([odd_points, odd, odd_hinges], dim=-1)

        even_hidden, odd_hidden = mirror_silu(*self.proj_in(even_features, odd_features))  # (batch, hidden_size) each
        for block in self.blocks:
            even_hidden, odd_hidden = block(even_hidden, odd_hidden)
        return self.proj_out(even_hidden, odd_hidden)

    def _split(self, features: torch.Tensor, num_odd: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Even and odd parts of `(batch, 72, channels)`. Mirroring swaps the sides and negates the first `num_odd`
        channels: the x of vectors.
        """
        features = features.index_select(1, self.point_order)
        left, right, middle = features.split([self.num_pairs, self.num_pairs, NUM_LANDMARKS - 2 * self.num_pairs], 1)
        right = torch.cat([-right[..., :num_odd], right[..., num_odd:]], dim=-1)
        even = torch.cat([(left + right).flatten(1), middle[..., num_odd:].flatten(1)], dim=-1)
        odd = torch.cat([(left - right).flatten(1), middle[..., :num_odd].flatten(1)], dim=-1)
        return even, odd

    def _check_landmarks(
        self, landmarks: torch.Tensor, visibility: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Landmarks as `(batch, 72, 3)` with y up and visibility as `(batch, 72, 1)`; what is not seen is 0."""
        if landmarks.ndim != 3 or landmarks.shape[1] not in (68, 72) or landmarks.shape[2] not in (2, 3):
            raise InputError(f"landmarks must have shape (batch, 68 or 72, 2 or 3), got {tuple(landmarks.shape)}")
        if not landmarks.is_floating_point():
            raise InputError(f"landmarks must be floating point, got {landmarks.dtype}; convert them first")
        landmarks = _at_least_single(landmarks)
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
        batch = len(coefficients)
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
    """The predictor that ships with the package, on the CPU, ready for use. Nothing is downloaded."""
    return LandmarkPredictor.from_pretrained(SHIPPED_PREDICTOR, local_files_only=True).eval()


def rotation_matrix(rotation: torch.Tensor) -> torch.Tensor:
    r"""
    The matrix `R = Rz(-roll) · Rx(-pitch) · Ry(yaw)` in a right-handed frame with x right, y up and z to the camera.

    Args:
        rotation (`torch.Tensor` of shape `(batch, 3)`): Yaw, pitch, roll in radians, signs as in `FaceCoefficients`.

    Returns:
        `torch.Tensor` of shape `(batch, 3, 3)`.
    """
    (yaw_sin, pitch_sin, roll_sin), (yaw_cos, pitch_cos, roll_cos) = (
        rotation.sin().unbind(-1),
        rotation.cos().unbind(-1),
    )
    lean_sin, lean_cos = roll_sin * pitch_sin, roll_cos * pitch_sin
    rows = [
        roll_cos * yaw_cos - lean_sin * yaw_sin,
        roll_sin * pitch_cos,
        roll_cos * yaw_sin + lean_sin * yaw_cos,
        -roll_sin * yaw_cos - lean_cos * yaw_sin,
        roll_cos * pitch_cos,
        lean_cos * yaw_cos - roll_sin * yaw_sin,
        -pitch_cos * yaw_sin,
        -pitch_sin,
        pitch_cos * yaw_cos,
    ]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _set_to_zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A weight in the dtype of what it is applied to."""
    return tensor if tensor.dtype == other.dtype else tensor.to(other.dtype)


def _at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision cannot tell neighboring pixels apart beyond 1024."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rotate_in_plane(points: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Turns points `(batch, points, 3)` counter-clockwise (y up) by an angle in radians."""
    x, y, z = points.unbind(-1)
    sin, cos = angle.sin()[:, None], angle.cos()[:, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=-1)


def _flip_y(points: torch.Tensor) -> torch.Tensor:
    """Pixels have y down, the head's frame has y up."""
    return torch.cat([points[..., :1], -points[..., 1:2], points[..., 2:]], dim=-1)


def _counterparts(names: list[str]) -> list[int]:
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
