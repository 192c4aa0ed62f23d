"""
Prints what the Landmark Predictor can do, beside what is asked of it.

    python benchmarks/landmarks.py --model PATH/TO/ICT-FaceKit --photos PATH/TO/PHOTOS

NME is the mean distance of the 68 points, in outer interocular distances; unless said otherwise both are measured in the
picture. Protocol: shapes N(0, 1) on all identity modes, each expression active with probability 0.15 at U(0, 0.8), yaw,
pitch, roll N(0, 20°), N(0, 9°), N(0, 7°), weak perspective, noise of 1.5 % of the interocular distance on the observed
points (z: 3 %). Truth is the reference's shape with the driving face's expression and pose, without noise. 2,000 pairs.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "landmark_predictor"))

from landmark_model import load_landmark_model  # noqa: E402
from posterior import Posterior  # noqa: E402
from synthetic import Faces, FaceSampler, interocular  # noqa: E402

from facesnap_diffusers.faces.drawing import draw_landmarks  # noqa: E402
from facesnap_diffusers.models.landmark_predictor import (  # noqa: E402
    FaceCoefficients,
    LandmarkPredictor,
    load_landmark_predictor,
)


PAIRS = 2000
SEED = 20261122
SAME_MAN = ("man_a_neutral", "man_a_smiling")
# Photos in which the person does not look at the camera, or something hides the face.
NOT_AT_CAMERA = {"woman_profile", "woman_masked"}


def report(what: str, value: float, limit: float | None = None, unit: str = "", at_least: bool = False) -> None:
    line = f"  {what:<68} {value:8.4f}{unit}"
    if limit is not None:
        met = value >= limit if at_least else value <= limit
        line += f"   {'≥' if at_least else '≤'} {limit:g}: {'yes' if met else 'NO'}"
    print(line, flush=True)


def face_errors(predicted: torch.Tensor, ground_truth: torch.Tensor, dimensions: int = 2) -> torch.Tensor:
    """Of each face, over the first 68 points; distances and interocular distance in 2-D or 3-D."""
    distance = (predicted[:, :68, :dimensions] - ground_truth[:, :68, :dimensions]).norm(dim=-1).mean(dim=1)
    return distance / interocular(ground_truth, dimensions)


def nme(predicted: torch.Tensor, ground_truth: torch.Tensor, dimensions: int = 2) -> float:
    return face_errors(predicted, ground_truth, dimensions).mean().item()


class Pairs:
    """2,000 references and driving faces, their clean landmarks, and the ground truth of re-targeting."""

    def __init__(self, model, max_yaw: float | None = None):
        self.sampler = FaceSampler(model, seed=SEED)
        self.reference = self.sampler.protocol(PAIRS, max_yaw)
        self.driving = self.sampler.protocol(PAIRS, max_yaw)
        self.reference_points = self.sampler.landmarks(self.reference)
        self.driving_points = self.sampler.landmarks(self.driving)
        head = self.sampler.head(self.reference.identity, self.driving.expression)
        self.ground_truth = self.sampler.landmarks(self.driving, head)

    def observe(self, dimensions: int, spoil=None) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Noisy 68 points of references and driving faces, and their visibility."""
        seen = []
        for points in (self.reference_points, self.driving_points):
            points, visible = self.sampler.observe(points), None
            if spoil is not None:
                points, visible = spoil(points)
            seen.append((points[:, :68, :dimensions], None if visible is None else visible[:, :68]))
        return seen


def retarget(predictor: LandmarkPredictor, seen) -> tuple[torch.Tensor, FaceCoefficients, FaceCoefficients]:
    reference, driving = (predictor.encode(points, visible) for points, visible in seen)
    return predictor.retarget(reference, driving, dimensions=3), reference, driving


def steered(predictor: LandmarkPredictor, seen) -> torch.Tensor:
    """As pipelines re-target: what the reconstruction of the reference misses follows."""
    reference, driving = (predictor.encode(points, visible) for points, visible in seen)
    target = dataclasses.replace(driving, shape=reference.shape)
    return predictor.repose(seen[0][0], reference, target)


def show_protocol(predictor: LandmarkPredictor, model) -> None:
    print("1. Re-targeted NME")
    pairs = Pairs(model)
    seen = pairs.observe(2)
    result, _, driving = retarget(predictor, seen)
    report("2-D points", nme(result, pairs.ground_truth), 0.030)
    report("    with what the reconstruction misses", nme(steered(predictor, seen), pairs.ground_truth))
    report("    driving landmarks as they are", nme(seen[1][0], pairs.ground_truth))
    mean_shape = dataclasses.replace(driving, shape=torch.zeros_like(driving.shape))
    report("    mean shape with fitted expression and pose", nme(predictor.decode(mean_shape), pairs.ground_truth))
    report("    reconstruction of the driving face itself", nme(predictor.decode(driving), pairs.driving_points))
    result, _, _ = retarget(predictor, pairs.observe(3))
    report("3-D points", nme(result, pairs.ground_truth), 0.022)
    report("    the same with distances in space", nme(result, pairs.ground_truth, dimensions=3), 0.022)

    print("2. Re-targeted NME under difficulties, 2-D points")
    sampler = pairs.sampler
    for what, hidden, limit in (
        ("displaced or invisible", 0.5, 0.040),
        ("displaced", 0, None),
        ("invisible", 1, None),
    ):
        seen = pairs.observe(2, lambda points, hidden=hidden: sampler.corrupt(points, 0.2, hidden))
        report(f"20 % of the points {what}", nme(retarget(predictor, seen)[0], pairs.ground_truth), limit)
    wide = Pairs(model, max_yaw=75)
    seen = wide.observe(2)
    report("yaw uniform up to 75°", nme(retarget(predictor, seen)[0], wide.ground_truth), 0.05)
    report("    with what the reconstruction misses", nme(steered(predictor, seen), wide.ground_truth))

    print("3. Mean pose error in degrees, 2-D points")
    for name, error in zip(("yaw", "pitch", "roll"), (driving.rotation - pairs.driving.rotation).abs().mean(0)):
        report(name, error.item(), 1.0)
    wide = Pairs(model, max_yaw=60)
    coefficients = predictor.encode(wide.observe(2)[1][0])
    for name, error in zip(("yaw", "pitch", "roll"), (coefficients.rotation - wide.driving.rotation).abs().mean(0)):
        report(f"{name}, yaw uniform up to 60°", error.item(), 2.5)


def show_speed(predictor: LandmarkPredictor, pairs: Pairs) -> None:
    print("4. Encode + decode on one CPU thread, median of 200 (100) runs")
    points = pairs.observe(2)[0][0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for batch, runs, limit in ((1, 200, 2.0), (256, 100, 0.1)):
        wall, cpu = [], []
        with torch.inference_mode():
            for _ in range(runs):
                wall_start, cpu_start = time.perf_counter(), time.thread_time()
                predictor.decode(predictor.encode(points[:batch]))
                wall.append(1e3 * (time.perf_counter() - wall_start) / batch)
                cpu.append(1e3 * (time.thread_time() - cpu_start) / batch)
        report(f"batch of {batch}, CPU time a face", statistics.median(cpu), limit, " ms")
        report(f"batch of {batch}, wall-clock time a face (other work counts)", statistics.median(wall), None, " ms")
    torch.set_num_threads(threads)


def show_equivariance(predictor: LandmarkPredictor, pairs: Pairs) -> None:
    print("5. Equivariance: greatest deviation of a point, in interocular distances")
    (reference, _), (driving, _) = pairs.observe(2)
    result = predictor.retarget(reference, driving)
    unit = interocular(pairs.driving_points)[:, None]
    angle = torch.tensor(0.7)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    mirror = torch.tensor([-1.0, 1.0])
    swap = list(predictor.config.mirror)
    changes = {
        "moved by (37, -120) pixels": (lambda p: p + torch.tensor([37.0, -120.0]), 1),
        "scaled by 1.7": (lambda p: p * 1.7, 1.7),
        "turned in the picture by 40°": (lambda p: p @ turn.T, 1),
        "mirrored": (lambda p: (p * mirror)[:, swap[: p.shape[1]]], 1),
    }
    for what, (change, scale) in changes.items():
        expected = change(result)
        given = predictor.retarget(change(reference), change(driving))
        report(what, ((given - expected).norm(dim=-1) / (scale * unit)).max().item(), 1e-3)


def show_photos(predictor: LandmarkPredictor, folder: Path) -> None:
    """Fit of real photos, and whether two photos of a man give like shapes."""
    from facesnap_diffusers.faces.analyzers.dlib import DlibFaceAnalyzer
    from facesnap_diffusers.faces.photo import load_photo

    print("6. Real photos, dlib's 68 points: reprojection NME")
    analyzer = DlibFaceAnalyzer()
    shapes = {}
    for path in sorted(folder.glob("*.jpg")):
        for number, face in enumerate(analyzer.analyze(load_photo(path))):
            points = torch.as_tensor(face.landmarks)[None]
            coefficients = predictor.encode(points)
            yaw, pitch, roll = coefficients.rotation[0].tolist()
            name = path.stem if number == 0 else f"{path.stem} ({number + 1})"
            limit = None if path.stem in NOT_AT_CAMERA else 0.06
            error = nme(predictor.decode(coefficients), points)
            report(f"{name}: yaw {yaw:.0f}°, pitch {pitch:.0f}°, roll {roll:.0f}°", error, limit)
            shapes[name] = coefficients.shape[0]

    for what, distance, limit in (
        (
            "as the faces differ that they describe",
            lambda a, b: ((a - b) @ predictor.shape_basis.flatten(1)).norm(),
            0.8,
        ),
        ("as vectors", lambda a, b: (a - b).norm(), None),
    ):
        print(f"   Shape codes, distances {what}: share of the others that are further than the man's other photo")
        between = distance(*(shapes[name] for name in SAME_MAN))
        for name in SAME_MAN:
            others = [shape for other, shape in shapes.items() if other not in SAME_MAN]
            further = statistics.mean(float(distance(shapes[name], shape) > between) for shape in others)
            report(name, further, limit, at_least=True)


def show_drawing() -> None:
    import PIL.Image

    print("7. Drawing: greatest difference to the stored reference picture, of 255")
    data = ROOT / "tests" / "data"
    expected = np.asarray(PIL.Image.open(data / "landmarks_reference.png").convert("RGB"), dtype=np.float32)
    landmarks = torch.tensor(np.loadtxt(data / "landmarks_reference.csv", delimiter=",", dtype=np.float32))[None]
    image = draw_landmarks(landmarks, *expected.shape[:2])[0].permute(1, 2, 0).numpy() * 255
    report("landmarks_reference.png", float(np.abs(image - expected).max()), 1.0)


def show_bound(predictor: LandmarkPredictor, model, faces: int, sweeps: int) -> None:
    """The predictor and the posterior mean on the same pairs: each face drives its neighbour's shape."""
    print(f"8. What is possible at all: posterior mean by {sweeps} sweeps of Markov chains, {faces} pairs")
    for dimensions in (2, 3):
        sampler = FaceSampler(model, seed=SEED + 1, dtype=torch.float64)
        ground_truth = sampler.protocol(faces)
        points = sampler.landmarks(ground_truth)
        observed = sampler.observe(points)[:, :68, :dimensions]
        target = sampler.landmarks(
            ground_truth, sampler.head(ground_truth.identity.roll(1, 0), ground_truth.expression)
        )

        found = predictor.encode(observed)
        result = predictor.decode(dataclasses.replace(found, shape=found.shape.roll(1, 0)), dimensions=3)
        expression = found.expression.clamp(max=0.8) * (found.expression > 0.1)
        guess = Faces(ground_truth.identity, expression, found.rotation, found.scale, ground_truth.translation)
        results = {"predictor": result}
        for name, start in (("ground truth", ground_truth), ("predictor's guess", guess)):
            posterior = Posterior(sampler, start, observed, 0.015 * interocular(points))
            offsets, turned, driven = posterior.mean(sweeps)
            results[f"chains from the {name}"] = driven + offsets.roll(1, 0) @ turned.mT
        results["mean of both"] = sum(list(results.values())[1:]) / 2
        # Does a least-squares step improve on the network? The most probable shape, given its pose and expression.
        fitted = Faces(ground_truth.identity, found.expression, found.rotation, found.scale, ground_truth.translation)
        offsets, turned = Posterior(sampler, fitted, observed, 0.015 * interocular(points)).most_probable_shape()
        without_shape = predictor.decode(dataclasses.replace(found, shape=torch.zeros_like(found.shape)), dimensions=3)
        results["predictor and least squares"] = without_shape + offsets.roll(1, 0) @ turned.mT

        for where, space in (("", 2), (", distances in space", 3)):
            own = face_errors(result, target, space)
            for name, result_of in results.items():
                errors = face_errors(result_of, target, space)
                report(f"{dimensions}-D points{where}: {name}", errors.mean().item())
                if name != "predictor":
                    gap = own - errors
                    deviation = gap.std().item() / faces**0.5
                    report(f"    predictor's error above it, ± {deviation:.4f}", gap.mean().item())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = ROOT.parent / "shared" / "data"
    parser.add_argument("--model", type=Path, default=data / "ict_facekit", help="ICT-FaceKit checkout or packed .npz")
    parser.add_argument("--photos", type=Path, default=data / "photos", help="folder of photos, for figure 6")
    parser.add_argument("--predictor", type=Path, help="folder of another predictor than the shipped one")
    parser.add_argument(
        "--bound", type=int, default=0, metavar="PAIRS", help="also estimate what is possible; 100 take ten minutes"
    )
    parser.add_argument("--bound-sweeps", type=int, default=200)
    args = parser.parse_args()

    predictor = LandmarkPredictor.from_pretrained(args.predictor) if args.predictor else load_landmark_predictor()
    model = load_landmark_model(args.model)
    with torch.inference_mode():
        show_protocol(predictor, model)
        pairs = Pairs(model)
        show_speed(predictor, pairs)
        show_equivariance(predictor, pairs)
        if args.photos.is_dir():
            show_photos(predictor, args.photos)
        show_drawing()
        if args.bound:
            show_bound(predictor, model, args.bound, args.bound_sweeps)


if __name__ == "__main__":
    main()
