"""
Trains the Landmark Predictor on random faces of the ICT FaceKit morphable model.

    python train.py --model PATH/TO/ICT-FaceKit --output landmark_predictor

Nothing but the morphable model is needed: each step draws new faces, projects their landmarks, spoils these as a
detector would, and asks the predictor to re-target every face to others of the batch. The loss is the figure that is
reported, the distance of the re-targeted points in interocular distances, so that the encoder learns the posterior mean
of what matters instead of the fit that is closest to noisy points.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from landmark_model import LandmarkModel, load_landmark_model, mirror_shape_basis
from safetensors.torch import save_file
from synthetic import Faces, FaceSampler, interocular, join, swap_sides

from facesnap_diffusers.faces.layout import JAW, LEFT_BROW, MIRROR, PARTS, RIGHT_BROW
from facesnap_diffusers.files import atomic_file
from facesnap_diffusers.models.landmark_predictor import LandmarkPredictor


def build_predictor(model: LandmarkModel, **config) -> LandmarkPredictor:
    """A predictor with the morphable model's landmarks and an untrained network."""
    predictor = LandmarkPredictor(expression_names=model.expression_names, mirror=list(MIRROR), **config)
    symmetric, asymmetric = mirror_shape_basis(
        model.identity, list(MIRROR), predictor.config.num_symmetric_shape, predictor.config.num_asymmetric_shape
    )
    names = model.expression_names
    counterparts = [names.index(swap_sides(name)) for name in names]
    predictor.mean.copy_(torch.as_tensor(model.mean + mirrored(model.mean)) / 2)
    predictor.shape_basis.copy_(torch.cat([torch.as_tensor(symmetric), torch.as_tensor(asymmetric)]))
    predictor.expression_basis.copy_(torch.as_tensor(model.expression + mirrored(model.expression[counterparts])) / 2)
    return predictor


def mirrored(points: np.ndarray) -> np.ndarray:
    return points[..., list(MIRROR), :] * [-1, 1, 1]


@torch.no_grad()
def fit_stages(predictor: LandmarkPredictor, sampler: FaceSampler, batches: int, batch: int = 2000) -> None:
    """The predictor's linear stages, one after the other and in closed form: from features to what is missing."""
    basis = predictor._split_basis(predictor.mean.dtype)
    for dimensions in (2, 3):
        is_3d = dimensions == 3
        stages = predictor.stages_3d if is_3d else predictor.stages_2d
        for number, stage in enumerate(stages):
            moments = None
            for _ in range(batches):
                faces, _, observed, visible = draw_observations(sampler, batch, dimensions, hard=batch // 6)
                points, visible = predictor._check_landmarks(observed, visible)
                points, angle, scale, origin = predictor._canonicalize(points, visible)
                seen = torch.cat([visible, visible, visible * is_3d], dim=-1)
                even_in, odd_in = predictor._start_features((points - predictor.mean) * seen)
                even, odd = torch.zeros(batch, predictor.num_even), torch.zeros(batch, predictor.num_odd)
                for previous in stages[:number]:
                    even_correction, odd_correction = previous(even_in, odd_in)
                    even, odd = even + even_correction, odd + odd_correction
                    even_in, odd_in = predictor._stage_features(points, seen, even, odd, basis)
                true_even, true_odd = canonical_truth(predictor, sampler, faces, angle, scale, origin, is_3d)
                missing = ((even_in, even_in), (even_in, true_even - even), (odd_in, odd_in), (odd_in, true_odd - odd))
                new = [(features.T @ target).double() for features, target in missing]
                moments = new if moments is None else [a + b for a, b in zip(moments, new)]
            stage.even.copy_(ridge(*moments[:2]))
            stage.odd.copy_(ridge(*moments[2:]))
            print(f"fitted stage {number} of {dimensions}-D", flush=True)


def ridge(gram: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    penalty = 1e-4 * torch.diag(gram.diagonal() + 1e-2 * gram.diagonal().mean())
    return torch.linalg.solve(gram + penalty, target).T


def canonical_truth(predictor, sampler, faces: Faces, angle, scale, origin, is_3d: bool):
    """True coefficients as the predictor keeps them while it encodes: even and odd parts, in the canonical frame."""
    basis = predictor.shape_basis.flatten(1)
    shape = faces.identity @ (sampler.identity.flatten(1) @ basis.T / basis.square().sum(1))
    yaw, pitch, roll = (3 * torch.deg2rad(faces.rotation)).unbind(-1)
    place = torch.nn.functional.pad(faces.translation * torch.tensor([1, -1]), (0, 1))
    place = (place - origin) / scale[:, None]
    sin, cos = angle.sin(), angle.cos()
    x, y = cos * place[:, 0] + sin * place[:, 1], cos * place[:, 1] - sin * place[:, 0]
    z = place[:, 2] * is_3d
    expression = faces.expression[:, predictor.expression_order.argsort()]
    pairs = predictor.num_expression_pairs
    left, right, single = expression.split([pairs, pairs, predictor.num_single_expressions], dim=1)
    symmetric = predictor.config.num_symmetric_shape
    log_scale = 3 * (faces.scale / scale).log()
    even = torch.cat([shape[:, :symmetric], (left + right) / 2, single, torch.stack([pitch, log_scale, y, z], 1)], 1)
    odd = torch.cat([shape[:, symmetric:], (left - right) / 2, torch.stack([yaw, roll + 3 * angle, x], 1)], 1)
    return even, odd


def draw_observations(sampler: FaceSampler, batch: int, dimensions: int, hard: int):
    """
    Faces with what a detector would say of them: under the protocol, but for the last `hard` ones, which have other
    noise, large poses, outliers, missing points and perspective.

    Returns:
        The faces, their true landmarks without noise or perspective, the observed points and their visibility.
    """
    varied = sampler.varied(hard)
    faces = join(sampler.protocol(batch - hard), varied)
    ground_truth = sampler.landmarks(faces)

    distance = torch.where(
        sampler.uniform(hard) < 0.3, sampler.uniform(hard, low=35, high=150), torch.full((hard,), 1e6)
    )
    noise = torch.where(sampler.uniform(hard) < 0.5, 0.015, 0.003 * 12 ** sampler.uniform(hard))
    share = torch.where(sampler.uniform(hard) < 0.6, sampler.uniform(hard, high=0.3), 0)
    observed_easy = sampler.observe(ground_truth[:-hard])
    observed_hard = sampler.observe(sampler.landmarks(varied, distance=distance), noise)
    observed_hard = shift_parts(sampler, observed_hard)
    observed_hard, visible_hard = sampler.corrupt(observed_hard, share)
    visible_hard = visible_hard & ~hide_parts(sampler, hard)

    observed = torch.cat([observed_easy, observed_hard])
    visible = torch.cat([torch.ones(batch - hard, 72, dtype=torch.bool), visible_hard])
    visible[:, 68:] &= sampler.uniform(batch, 1) < 0.25  # most detectors give 68 points
    return faces, ground_truth, observed[..., :dimensions], visible


def shift_parts(sampler: FaceSampler, landmarks: torch.Tensor) -> torch.Tensor:
    """
    Detectors place a part as a whole too high or too far out, and points of the jaw and the brows too far along these:
    half of the faces get such errors.
    """
    part_of = torch.zeros(72, dtype=torch.long)
    for number, part in enumerate(PARTS):
        part_of[list(part.indices)] = number
    unit = interocular(landmarks)[:, None, None]
    shifts = 0.025 * sampler.normal(len(landmarks), len(PARTS), 3) * unit
    shifts = shifts[:, part_of]
    for part, amount in ((JAW, 0.06), (RIGHT_BROW, 0.03), (LEFT_BROW, 0.03)):
        points = landmarks[:, list(part.indices)]
        along = torch.nn.functional.normalize(torch.gradient(points, dim=1)[0], dim=-1)
        # As far at one end as at the other, or to and fro.
        whole, ends = (amount * sampler.normal(len(landmarks), 2, 1, 1)).unbind(1)
        slide = whole + ends * torch.linspace(-1, 1, len(part.indices))[:, None]
        shifts[:, list(part.indices)] += slide * along * unit
    return landmarks + shifts * (sampler.uniform(len(landmarks), 1, 1) < 0.5)


def hide_parts(sampler: FaceSampler, batch: int) -> torch.Tensor:
    """Now and then one part of the face (the jaw, the mouth behind a mask, an eye...) is missing altogether."""
    parts = [range(0, 17), range(0, 9), range(8, 17), range(17, 22), range(22, 27), range(36, 42), range(42, 48)]
    parts += [range(48, 68), range(27, 36)]
    masks = torch.zeros(len(parts) + 1, 72, dtype=torch.bool)
    for mask, part in zip(masks, parts):
        mask[list(part)] = True
    choice = (sampler.uniform(batch) * len(parts)).long()
    return masks[torch.where(sampler.uniform(batch) < 0.15, choice, len(parts))]


def loss_of(
    predictor: LandmarkPredictor, sampler: FaceSampler, batch: int, dimensions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss, and the re-targeted NME on the batch's share of the protocol's population."""
    faces, _truth, observed, visible = draw_observations(sampler, batch, dimensions, hard=batch // 3)
    coefficients = predictor.encode(observed, visible)

    def distances(shift: int) -> torch.Tensor:
        """Of the points re-targeted from faces `shift` places further on, in interocular distances."""
        head = sampler.head(faces.identity.roll(shift, 0), faces.expression)
        target = sampler.landmarks(faces, head)
        mixed = dataclasses.replace(coefficients, shape=coefficients.shape.roll(shift, 0))
        error = predictor.decode(mixed, dimensions=3) - target
        # In a profile the eye corners fall together; such faces must not outweigh all others.
        unit = interocular(target).maximum(0.4 * interocular(target, dimensions=3))[:, None]
        in_picture = error[..., :2].norm(dim=-1) / unit
        in_space = error.norm(dim=-1) / unit
        return in_picture, in_space

    loss, count = 0, 0
    protocol_nme = []
    for shift in (0, 1, 2, 3):
        in_picture, in_space = distances(shift)
        loss = loss + in_picture[:, :68].mean() + 0.1 * in_picture[:, 68:].mean() + 0.3 * in_space.mean()
        count += 1
        if shift:
            protocol_nme.append(in_picture[3 : batch - batch // 3, :68].mean().detach())
    loss = loss / count

    # Coefficients that mean what they say: expressions for those who read them, pose for those who replace it.
    expression_error = (coefficients.expression - faces.expression).square().sum(-1).mean()
    pose_error = (coefficients.rotation - faces.rotation).abs().mean()
    return loss + 0.005 * expression_error + 0.001 * pose_error, torch.stack(protocol_nme).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="ICT-FaceKit checkout, or its packed .npz")
    parser.add_argument("--output", type=Path, default=Path("landmark_predictor"))
    parser.add_argument("--steps", type=int, default=10500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--hidden-size", type=int, default=184)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--stage-batches", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="folder; training continues from the checkpoint in it")
    parser.add_argument("--checkpoint-every", type=int, default=500)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = load_landmark_model(args.model)
    predictor = build_predictor(model, hidden_size=args.hidden_size, num_layers=args.layers, num_stages=args.stages)
    checkpoint = args.checkpoint / "state.pt" if args.checkpoint else None
    state = torch.load(checkpoint, weights_only=True) if checkpoint and checkpoint.is_file() else None
    if state is None:
        fit_stages(predictor, FaceSampler(model, seed=args.seed), args.stage_batches)
    print(f"{sum(p.numel() for p in predictor.parameters()):,} parameters", flush=True)

    linear = [*predictor.stages_2d.parameters(), *predictor.stages_3d.parameters()]
    network = [*predictor.proj_in.parameters(), *predictor.blocks.parameters(), *predictor.proj_out.parameters()]
    groups = [{"params": linear, "lr": 0.05 * args.rate}, {"params": network}]
    optimizer = torch.optim.Adam(groups, lr=args.rate, betas=(0.9, 0.99))

    def rate(step: int) -> float:
        """Warm-up, then constant, then down to 0 over the last half."""
        return min(1.0, (step + 1) / 200, 2 * (1 - step / args.steps))

    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    first = 0
    if state is not None:
        predictor.load_state_dict(state["predictor"])
        optimizer.load_state_dict(state["optimizer"])
        lr_scheduler.load_state_dict(state["lr_scheduler"])
        first = state["step"]

    sampler = FaceSampler(model, seed=args.seed * 1_000_003 + first)
    started, nme = time.time(), {}
    for step in range(first, args.steps):
        dimensions = 3 if step % 5 in (1, 3) else 2
        loss, protocol_nme = loss_of(predictor, sampler, args.batch, dimensions)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()

        nme[dimensions] = 0.98 * nme.get(dimensions, protocol_nme.item()) + 0.02 * protocol_nme.item()
        if (step + 1) % 100 == 0:
            figures = "  ".join(f"{key}-D {value:.4f}" for key, value in sorted(nme.items()))
            print(f"step {step + 1}  {time.time() - started:.0f} s  NME {figures}", flush=True)
        if checkpoint and (step + 1) % args.checkpoint_every == 0:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {
                "predictor": predictor.state_dict(),
                "optimizer": optimizer.state_dict(),
                "lr_scheduler": lr_scheduler.state_dict(),
                "step": step + 1,
            }
            with atomic_file(checkpoint) as temporary:
                torch.save(state, temporary)

    save(predictor, args.output)


def save(predictor: LandmarkPredictor, folder: Path) -> None:
    """The network in half precision, the morphable model's landmarks in single precision."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(predictor.named_parameters())
    tensors = {name: t.half() if name in parameters else t for name, t in predictor.state_dict().items()}
    with atomic_file(folder / "diffusion_pytorch_model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    predictor.save_config(folder)


if __name__ == "__main__":
    main()
