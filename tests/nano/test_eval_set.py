"""The evaluation set of rendered people: what a case asks for is what its true picture shows."""

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch


pytest.importorskip("scipy", reason="the renderer needs scipy")
pytest.importorskip("cv2", reason="the renderer needs opencv")
pytest.importorskip("moderngl", reason="the renderer needs moderngl")

from dataset import SEED
from eval_set import face_box, head_pose, write_eval_set
from people.captions import person_clauses
from people.sampling import sample_person, sample_scene

from facesnap_diffusers import DlibFaceAnalyzer, HeadPose, load_landmark_predictor
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.models.landmark_predictor import FaceCoefficients
from facesnap_diffusers.nano.portrait_box import portrait_box
from facesnap_diffusers.steering import as_boxes, fit_into_box


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def eval_set(renderer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval-set")
    write_eval_set(folder, renderer, people=3, cases=2)
    return folder


@pytest.fixture(scope="module")
def benchmark(eval_set):
    return load_benchmark("nano", eval_set)


def error_of(points: np.ndarray, ground_truth: np.ndarray) -> float:
    """Mean distance by that of the ground truth's outer eye corners."""
    return np.linalg.norm(points - ground_truth, axis=1).mean() / np.linalg.norm(ground_truth[36] - ground_truth[45])


def retargeted(predictor, ict_model, index: int, case, pose: HeadPose) -> np.ndarray:
    """What the package draws for the person's exact shape, straight from the morphable model's file."""
    data = np.load(ict_model)
    at = data["landmarks72"]
    offset = np.einsum("k,kvc->vc", sample_person(SEED, index).shape, data["identity"][:, at].astype(np.float64))
    basis = predictor.shape_basis.flatten(1).double()
    shape = torch.linalg.lstsq(basis.T, torch.from_numpy(offset.ravel())[:, None]).solution.T.float()
    expression = torch.from_numpy(case.expression.to_vector(predictor.config.expression_names))[None]
    rotation = torch.tensor([pose.as_tuple()])
    posed = FaceCoefficients(shape, expression, rotation, scale=torch.ones(1), translation=torch.zeros(1, 3))
    frontal = dataclasses.replace(posed, expression=0 * expression, rotation=0 * rotation)
    box = torch.tensor([case.face_box])
    return fit_into_box(predictor.decode(posed), predictor.decode(frontal), box, 128, 128)[0].numpy()


def test_exact_coefficients_land_on_the_truth(renderer, ict_model, benchmark):
    """Signs, order of rotations, expression and box at once: the ground truth's landmarks are the renderer's own."""
    predictor = load_landmark_predictor()
    assert len(benchmark.cases) == 6
    assert len(as_boxes([case.face_box for case in benchmark.cases])) == 6
    errors: dict[str, list[float]] = {"as in the case": [], "other yaw": [], "other pitch": [], "other roll": []}
    for number, case in enumerate(benchmark.cases):
        ground_truth = true_landmarks(renderer, case)
        yaw, pitch, roll = case.pose.as_tuple()
        poses = (case.pose, HeadPose(-yaw, pitch, roll), HeadPose(yaw, -pitch, roll), HeadPose(yaw, pitch, -roll))
        for name, pose in zip(errors, poses):
            errors[name].append(error_of(retargeted(predictor, ict_model, number // 2, case, pose), ground_truth))
    exact, *mirrored = errors.values()
    assert max(exact) < 0.05
    for other in mirrored:
        assert np.mean(other) > 1.5 * np.mean(exact)


def true_landmarks(renderer, case) -> np.ndarray:
    """The scene of a case is found again by its true picture."""
    index = int(case.person)
    ground_truth = np.array(PIL.Image.open(case.ground_truth))
    for view in range(60):
        scene = sample_scene(SEED, index, view, renderer.model.expression_index)
        if scene.background_name == case.background and scene.expression_name == case.group:
            portrait = renderer.render(sample_person(SEED, index), scene)
            if np.array_equal(portrait.image, ground_truth):
                return portrait.landmarks - 0.5
    raise AssertionError(f"the true picture of {case.id} is none of the person's views")


def test_driving_landmarks_are_another_persons(renderer, benchmark):
    """Same place and scale, other proportions."""
    for case in benchmark.cases:
        error = error_of(np.array(case.driving_landmarks), true_landmarks(renderer, case))
        assert 0.02 < error < 0.3


def test_cases_differ_from_the_reference(benchmark):
    analyzer, predictor = DlibFaceAnalyzer(), load_landmark_predictor()

    def rotation(path):
        (face,) = analyzer.analyze(np.array(PIL.Image.open(path)))
        return predictor.encode(torch.from_numpy(face.landmarks)[None]).rotation[0]

    for case in benchmark.cases:
        reference, ground_truth = rotation(case.reference[0]), rotation(case.ground_truth)
        assert (reference - ground_truth).abs().max() > 8
        assert (ground_truth - torch.tensor(case.pose.as_tuple())).abs()[0] < 15


def test_prompts_say_nothing_about_the_person(benchmark):
    for number, case in enumerate(benchmark.cases):
        assert case.background in case.prompt
        assert case.group in case.prompt
        for clause in person_clauses(sample_person(SEED, number // 2).attributes):
            assert clause not in case.prompt


def test_the_set_is_a_function_of_the_seed(renderer, eval_set, tmp_path):
    write_eval_set(tmp_path, renderer, people=3, cases=2)
    for path in sorted(eval_set.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(eval_set)).read_bytes()


def test_demo_frames_faces_as_the_renderer_does(renderer):
    """The mean face in the middle of the renderer's frames, wherever the head turns."""
    person = sample_person(SEED, 0)
    person.shape = np.zeros_like(person.shape)
    for view in range(12):
        scene = sample_scene(SEED, 0, view, renderer.model.expression_index)
        scene.camera = np.array([0.0, 2.3, 14.5])
        box = face_box(renderer.model, person, scene, 128)
        np.testing.assert_allclose(portrait_box(head_pose(scene)), box, atol=0.02)
