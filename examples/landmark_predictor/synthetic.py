"""Random faces of the morphable model, seen by an imperfect landmark detector."""

from dataclasses import dataclass, fields

import torch
from landmark_model import LandmarkModel

from facesnap_diffusers.models.landmark_predictor import NUM_LANDMARKS, rotation_matrix


OUTER_EYE_CORNERS = (36, 45)


@dataclass
class Faces:
    """Ground truth of a batch. Lengths in cm, angles in degrees; signs as in `FaceCoefficients`."""

    identity: torch.Tensor  # (batch, modes)
    expression: torch.Tensor  # (batch, expressions)
    rotation: torch.Tensor  # (batch, 3)
    scale: torch.Tensor  # (batch,), pixels per cm
    translation: torch.Tensor  # (batch, 2), pixels


def join(one: Faces, other: Faces) -> Faces:
    return Faces(*(torch.cat([getattr(one, field.name), getattr(other, field.name)]) for field in fields(Faces)))


def swap_sides(name: str) -> str:
    """The expression's counterpart in a mirrored face."""
    for side, other in (("_L", "_R"), ("_R", "_L"), ("Left", "Right"), ("Right", "Left")):
        if name.endswith(side):
            return name.removesuffix(side) + other
    return name


class FaceSampler:
    """Draws faces, renders their landmarks and spoils these, on one device and with one random generator."""

    def __init__(self, model: LandmarkModel, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, dtype
        self.mean = torch.as_tensor(model.mean, dtype=dtype, device=device)
        self.identity = torch.as_tensor(model.identity, dtype=dtype, device=device)
        self.expression = torch.as_tensor(model.expression, dtype=dtype, device=device)
        names = model.expression_names
        self.counterpart = [names.index(swap_sides(name)) for name in names]

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        draw = torch.rand(shape, generator=self.generator, device=self.device, dtype=self.dtype)
        return low + (high - low) * draw

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def protocol(self, batch: int, max_yaw: float | None = None) -> Faces:
        """
        The population that is reported on: all identity modes standard normal, each expression active with
        probability 0.15 at U(0, 0.8), yaw, pitch and roll N(0, 20°), N(0, 9°), N(0, 7°), weak perspective.
        With `max_yaw`, yaw is uniform up to it on both sides.
        """
        active = self.uniform(batch, len(self.expression)) < 0.15
        rotation = self.normal(batch, 3) * torch.tensor([20.0, 9.0, 7.0], device=self.device, dtype=self.dtype)
        if max_yaw is not None:
            rotation[:, 0] = self.uniform(batch, low=-max_yaw, high=max_yaw)
        return Faces(
            identity=self.normal(batch, len(self.identity)),
            expression=active * self.uniform(batch, len(self.expression), high=0.8),
            rotation=rotation,
            scale=self.uniform(batch, low=5, high=30),
            translation=self.uniform(batch, 2, low=100, high=400),
        )

    def varied(self, batch: int) -> Faces:
        """The protocol's faces with more of what photos show: symmetric and stronger expressions, large poses."""
        faces = self.protocol(batch)
        symmetric = self.uniform(batch, 1) < 0.5
        stronger = 1 + (self.uniform(batch, 1) < 0.3) * self.uniform(batch, 1, high=0.25)
        expression = torch.where(symmetric, faces.expression[:, self.counterpart], faces.expression)
        left = torch.tensor([index < other for index, other in enumerate(self.counterpart)], device=self.device)
        expression = torch.where(left, faces.expression, expression) * stronger
        expression = expression * (self.uniform(batch, 1) > 0.15)
        turned = self.uniform(batch, low=-80, high=80)
        yaw = torch.where(self.uniform(batch) < 0.6, turned, faces.rotation[:, 0])
        pitch = faces.rotation[:, 1] * self.uniform(batch, low=1, high=2)
        rotation = torch.stack([yaw, pitch, faces.rotation[:, 2]], dim=1)
        return Faces(faces.identity, expression.clamp(0, 1), rotation, faces.scale, faces.translation)

    def head(self, identity: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """Landmarks in the head's own frame, `(batch, 72, 3)` in cm."""
        offsets = identity @ self.identity.flatten(1) + expression @ self.expression.flatten(1)
        return self.mean + offsets.unflatten(-1, (NUM_LANDMARKS, 3))

    def landmarks(self, faces: Faces, head: torch.Tensor | None = None, distance: torch.Tensor | None = None):
        """
        Landmarks as a camera sees them, `(batch, 72, 3)` in pixels: x right, y down, z towards the camera.

        Args:
            head: Landmarks in the head's frame, in place of those of `faces`.
            distance: `(batch,)`, of a camera with perspective, in cm. Without it, weak perspective.
        """
        if head is None:
            head = self.head(faces.identity, faces.expression)
        points = head @ rotation_matrix(torch.deg2rad(faces.rotation)).mT
        if distance is not None:
            nearness = distance[:, None, None] / (distance[:, None, None] - points[..., 2:])
            points = torch.cat([points[..., :2] * nearness, points[..., 2:]], dim=-1)
        points = points * faces.scale[:, None, None] * torch.tensor([1, -1, 1], device=self.device, dtype=self.dtype)
        return points + torch.nn.functional.pad(faces.translation, (0, 1))[:, None]

    def observe(self, landmarks: torch.Tensor, noise: float | torch.Tensor = 0.015) -> torch.Tensor:
        """Adds Gaussian noise, in units of the interocular distance in the picture; twice as much to z."""
        unit = interocular(landmarks)[:, None, None] * torch.tensor([1, 1, 2], device=self.device, dtype=self.dtype)
        noise = torch.as_tensor(noise, device=self.device, dtype=self.dtype)
        return landmarks + unit * noise.reshape(-1, 1, 1) * self.normal(*landmarks.shape)

    def corrupt(
        self, landmarks: torch.Tensor, share: float | torch.Tensor = 0.2, hidden: float = 0.5
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Spoils a share of the points. Of these, some (`hidden`, a probability) are marked invisible, the others displaced
        in a random direction by up to half the interocular distance in the picture, and not marked.

        Returns:
            The landmarks and their visibility, `(batch, 72)`.
        """
        batch = len(landmarks)
        spoiled = self.uniform(batch, NUM_LANDMARKS) < torch.as_tensor(share, device=self.device).reshape(-1, 1)
        invisible = spoiled & (self.uniform(batch, NUM_LANDMARKS) < hidden)
        direction = torch.nn.functional.normalize(self.normal(*landmarks.shape), dim=-1)
        shift = direction * self.uniform(batch, NUM_LANDMARKS, 1, high=0.5) * interocular(landmarks)[:, None, None]
        landmarks = landmarks + torch.where((spoiled & ~invisible)[..., None], shift, 0)
        return landmarks, ~invisible


def interocular(landmarks: torch.Tensor, dimensions: int = 2) -> torch.Tensor:
    """Distance of the outer eye corners, `(batch,)`, in the picture or in space."""
    right, left = OUTER_EYE_CORNERS
    return (landmarks[:, right, :dimensions] - landmarks[:, left, :dimensions]).norm(dim=-1)
