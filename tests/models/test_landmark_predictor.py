"""The Landmark Predictor that ships with the package, against the morphable model written out in numpy and scipy."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from facesnap_diffusers import InputError, LandmarkPredictor, load_landmark_predictor
from facesnap_diffusers.faces.expression import EXPRESSION_NAMES
from facesnap_diffusers.faces.layout import MIRROR, OUTER_EYE_CORNERS
from facesnap_diffusers.models.landmark_predictor import SHIPPED_PREDICTOR, FaceCoefficients


NOSE_TIP, CHIN, RIGHT_EYE_CORNER, LEFT_EYE_CORNER = 30, 8, *OUTER_EYE_CORNERS


@pytest.fixture(scope="module")
def predictor():
    return load_landmark_predictor()


@pytest.fixture(scope="module")
def population(predictor):
    """200 random faces under the protocol of `benchmarks/landmarks.py`: their coefficients, in float64."""
    random = np.random.default_rng(7)
    count = 200
    active = random.random((count, 53)) < 0.15
    return FaceCoefficients(
        shape=torch.tensor(random.normal(size=(count, predictor.shape_basis.shape[0]))),
        expression=torch.tensor(active * random.uniform(0, 0.8, (count, 53))),
        rotation=torch.tensor(random.normal(size=(count, 3)) * [20, 9, 7]),
        scale=torch.tensor(random.uniform(5, 30, count)),
        translation=torch.tensor(random.uniform(100, 400, (count, 3))),
    )


def written_out(predictor, coefficients):
    """The morphable model in numpy, with scipy's rotations: `(batch, 72, 3)` in pixels, y down."""
    model = {name: value.double().numpy() for name, value in predictor.named_buffers()}
    shape, expression, rotation, scale, translation = (
        getattr(coefficients, field.name).double().numpy() for field in dataclasses.fields(FaceCoefficients)
    )
    faces = []
    for row in range(len(scale)):
        head = model["mean"] + np.tensordot(shape[row], model["shape_basis"], 1)
        head = head + np.tensordot(expression[row], model["expression_basis"], 1)
        yaw, pitch, roll = rotation[row]
        # y up: a positive turn about x lowers the nose, and one about z is counter-clockwise
        turned = Rotation.from_euler("yxz", [yaw, -pitch, -roll], degrees=True).apply(head)
        faces.append(scale[row] * turned * [1, -1, 1] + translation[row])
    return np.stack(faces)


def observe(points, noise=0.015, seed=0):
    """Points with noise in units of the interocular distance in the picture; twice as much in z."""
    random = np.random.default_rng(seed)
    unit = np.linalg.norm(points[:, LEFT_EYE_CORNER, :2] - points[:, RIGHT_EYE_CORNER, :2], axis=-1)
    return torch.tensor(points + noise * unit[:, None, None] * random.normal(size=points.shape) * [1, 1, 2])


def nme(points, truth):
    """In the picture, over 68 points."""
    points, truth = (torch.as_tensor(value).detach().numpy()[:, :68, :2] for value in (points, truth))
    unit = np.linalg.norm(truth[:, LEFT_EYE_CORNER] - truth[:, RIGHT_EYE_CORNER], axis=-1)
    return (np.linalg.norm(points - truth, axis=-1).mean(1) / unit).mean()


def neutral(predictor, **changes):
    """A mean face of 200 pixels, and what is changed of it."""
    face = FaceCoefficients(
        shape=torch.zeros(1, predictor.shape_basis.shape[0]),
        expression=torch.zeros(1, len(predictor.config.expression_names)),
        rotation=torch.zeros(1, 3),
        scale=torch.full((1,), 12.0),
        translation=torch.tensor([[128.0, 128.0, 0.0]]),
    )
    return dataclasses.replace(face, **changes)


class TestDecode:
    def test_is_the_morphable_model(self, predictor, population):
        expected = written_out(predictor, population)
        np.testing.assert_allclose(predictor.decode(population, dimensions=3), expected, atol=1e-6)
        np.testing.assert_allclose(predictor.decode(population), expected[..., :2], atol=1e-6)
        assert predictor.decode(population.to(torch.float32)).dtype == torch.float32

    @pytest.mark.parametrize(
        ("rotation", "moves"),
        [
            ((25.0, 0.0, 0.0), lambda p, q: q[NOSE_TIP, 0] > p[NOSE_TIP, 0] + 10),  # to the right of the picture
            ((0.0, 20.0, 0.0), lambda p, q: q[NOSE_TIP, 1] < p[NOSE_TIP, 1] - 10),  # up
            ((0.0, 0.0, 20.0), lambda p, q: q[LEFT_EYE_CORNER, 1] > p[LEFT_EYE_CORNER, 1] + 10),  # clockwise
            ((0.0, 0.0, 20.0), lambda p, q: q[CHIN, 0] < p[CHIN, 0] - 10),
        ],
    )
    def test_signs_are_those_of_the_picture(self, predictor, rotation, moves):
        plain, turned = (
            predictor.decode(neutral(predictor, rotation=torch.tensor([angles])))[0]
            for angles in ((0, 0, 0), rotation)
        )
        assert moves(plain.float(), turned)

    def test_left_and_right_are_the_persons(self, predictor):
        names = predictor.config.expression_names
        wink = torch.zeros(1, len(names))
        wink[0, names.index("eyeBlink_L")] = 1
        moved = (predictor.decode(neutral(predictor, expression=wink)) - predictor.decode(neutral(predictor)))[0]
        distance = moved.norm(dim=-1)
        assert distance[42:48].max() > 3 and distance[36:42].max() < 0.5  # the person's left eye is on the right

    def test_model_is_symmetric(self, predictor):
        flip = torch.tensor([-1, 1, 1])
        torch.testing.assert_close(predictor.mean[list(MIRROR)] * flip, predictor.mean, atol=1e-5, rtol=0)
        mirrored = predictor.shape_basis[:, list(MIRROR)] * flip
        symmetric = predictor.config.num_symmetric_shape
        torch.testing.assert_close(mirrored[:symmetric], predictor.shape_basis[:symmetric], atol=1e-5, rtol=0)
        torch.testing.assert_close(mirrored[symmetric:], -predictor.shape_basis[symmetric:], atol=1e-5, rtol=0)


class TestEncode:
    def test_random_faces(self, predictor, population):
        points = written_out(predictor, population)
        for dimensions, count in ((2, 68), (2, 72), (3, 68), (3, 72)):
            seen = observe(points)[:, :count, :dimensions]
            found = predictor.encode(seen)
            assert nme(predictor.decode(found), points) < 0.013
            assert (found.rotation - population.rotation).abs().mean(0).max() < 1.0
            assert ((found.scale / population.scale).log().abs()).mean() < 0.035
            assert (found.expression >= 0).all() and (found.expression <= 1).all()
            # Strengths are told from each other as far as noise allows.
            correlation = np.corrcoef(found.expression.detach().flatten(), population.expression.flatten())[0, 1]
            assert correlation > 0.6

    def test_large_poses(self, predictor, population):
        for yaw in (-60.0, 60.0):
            faces = dataclasses.replace(
                population, rotation=torch.stack([torch.full((200,), yaw), *population.rotation.T[1:]], dim=1).double()
            )
            found = predictor.encode(observe(written_out(predictor, faces))[:, :68, :2])
            assert (found.rotation - faces.rotation).abs().mean(0).max() < 2.5

    def test_invisible_points_do_not_matter(self, predictor, population):
        seen = observe(written_out(predictor, population))[:5, :68, :2]
        visible = torch.ones(5, 68, dtype=torch.bool)
        visible[:, 48:68:2] = False
        broken = torch.where(visible[..., None], seen, torch.nan)
        for form in (visible, visible.float()):
            first, second = predictor.encode(seen, form), predictor.encode(broken, form)
            for field in dataclasses.fields(FaceCoefficients):
                assert torch.equal(getattr(first, field.name), getattr(second, field.name))
        # four eyelid points that are not seen are as good as none
        padded = torch.cat([seen, torch.full((5, 4, 2), torch.nan)], dim=1)
        hidden = torch.cat([visible, torch.zeros(5, 4, dtype=torch.bool)], dim=1)
        assert torch.equal(predictor.encode(padded, hidden).shape, predictor.encode(seen, visible).shape)

    def test_where_depth_begins_does_not_matter(self, predictor, population):
        seen = observe(written_out(predictor, population))[:5]
        moved = predictor.encode(seen + torch.tensor([0, 0, 1000.0]))
        found = predictor.encode(seen)
        torch.testing.assert_close(moved.shape, found.shape, atol=1e-6, rtol=0)
        torch.testing.assert_close(moved.translation[:, 2], found.translation[:, 2] + 1000, atol=1e-6, rtol=0)

    def test_faces_of_a_batch_do_not_mix(self, predictor, population):
        seen = observe(written_out(predictor, population))[:7, :68, :2]
        together = predictor.decode(predictor.encode(seen))
        for row in range(7):
            alone = predictor.decode(predictor.encode(seen[row : row + 1]))
            torch.testing.assert_close(alone[0], together[row], atol=1e-8, rtol=0)

    def test_dtypes(self, predictor, population):
        seen = observe(written_out(predictor, population))[:3, :68, :2]
        exact = predictor.encode(seen)
        assert exact.shape.dtype == torch.float64
        for dtype, tolerance in ((torch.float32, 0.01), (torch.float16, 1.0)):
            found = predictor.encode(seen.to(dtype))
            assert found.shape.dtype == torch.float32
            torch.testing.assert_close(found.rotation, exact.rotation.float(), atol=tolerance, rtol=0)

    def test_no_faces(self, predictor):
        found = predictor.encode(torch.zeros(0, 68, 2))
        assert len(found) == 0 and predictor.decode(found).shape == (0, 72, 2)


class TestRetarget:
    def test_error_on_random_faces(self, predictor, population):
        """Below what others do: the driving face's own landmarks, and no shape at all."""
        points = written_out(predictor, population)
        others = dataclasses.replace(population, shape=population.shape.roll(1, 0))
        truth = written_out(predictor, others)
        for dimensions in (2, 3):
            seen = observe(points)[:, :68, :dimensions]
            found = predictor.encode(seen)
            error = nme(predictor.retarget(seen.roll(1, 0), seen), truth)
            assert error < 0.034
            assert error < 0.7 * nme(seen, truth)
            assert error < 0.8 * nme(predictor.decode(dataclasses.replace(found, shape=0 * found.shape)), truth)

    def test_outliers(self, predictor, population):
        """20 % of the points up to half an interocular distance off, and nothing says which."""
        points = written_out(predictor, population)
        random = np.random.default_rng(3)
        unit = np.linalg.norm(points[:, LEFT_EYE_CORNER, :2] - points[:, RIGHT_EYE_CORNER, :2], axis=-1)
        shift = random.normal(size=(200, 68, 2))
        shift = shift / np.linalg.norm(shift, axis=-1, keepdims=True) * random.uniform(0, 0.5, (200, 68, 1))
        shift = shift * unit[:, None, None] * (random.random((200, 68, 1)) < 0.2)
        seen = observe(points)[:, :68, :2] + torch.tensor(shift)
        truth = written_out(predictor, dataclasses.replace(population, shape=population.shape.roll(1, 0)))
        error = nme(predictor.retarget(seen.roll(1, 0), seen), truth)
        assert error < 0.05 and error < 0.5 * nme(seen, truth)

    def test_follows_the_driving_picture(self, predictor, population):
        seen = observe(written_out(predictor, population))[:20, :68, :2]
        reference, driving = seen.roll(1, 0), seen
        result = predictor.retarget(reference, driving)
        unit = (driving[:, LEFT_EYE_CORNER] - driving[:, RIGHT_EYE_CORNER]).norm(dim=-1)[:, None]
        turn = torch.tensor(Rotation.from_euler("z", 40, degrees=True).as_matrix()[:2, :2])
        swap = list(MIRROR)
        for change, scale in (
            (lambda p: p + torch.tensor([37.0, -120.0]), 1),
            (lambda p: 1.7 * p, 1.7),
            (lambda p: p @ turn.T, 1),
            (lambda p: (p * torch.tensor([-1.0, 1.0]))[:, swap[: p.shape[1]]], 1),
        ):
            given = predictor.retarget(change(reference), change(driving))
            assert ((given - change(result)).norm(dim=-1) / (scale * unit)).max() < 1e-6
            # where and how large the reference is does not matter
            torch.testing.assert_close(predictor.retarget(2 * reference - 5, driving), result, atol=1e-6, rtol=0)

    def test_one_reference_for_many(self, predictor, population):
        seen = observe(written_out(predictor, population))[:4, :68, :2]
        many = predictor.retarget(seen[:1], seen)
        assert many.shape == (4, 72, 2)
        torch.testing.assert_close(many[2:3], predictor.retarget(seen[:1], seen[2:3]), atol=1e-8, rtol=0)
        encoded = predictor.retarget(predictor.encode(seen[:1]), predictor.encode(seen), dimensions=3)
        assert encoded.shape == (4, 72, 3)
        torch.testing.assert_close(encoded[..., :2], many)
        torch.testing.assert_close(predictor(seen[:1], seen), many)
        assert predictor.retarget(seen, seen[:1]).shape == (4, 72, 2)

    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_is_differentiable(self, predictor, population, dimensions):
        seen = observe(written_out(predictor, population))[:2, :68, :dimensions]
        random = torch.Generator().manual_seed(0)
        weight = torch.randn(2, 72, 2, generator=random, dtype=torch.float64)
        direction = torch.randn(seen.shape, generator=random, dtype=torch.float64)

        def value(points):
            return (predictor.retarget(points.flip(0), points) * weight).sum()

        (gradient,) = torch.autograd.grad(value(points := seen.clone().requires_grad_()), points)
        step = 1e-5
        difference = (value(seen + step * direction) - value(seen - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4)


class TestCoefficients:
    def test_picking(self, population):
        assert len(population) == 200
        for index in (3, -1):
            one = population[index]
            assert len(one) == 1 and torch.equal(one.scale, population.scale[index][None])
        assert len(population[10:14]) == 4 and len(population[torch.tensor([5, 3])]) == 2

    def test_casting(self, population):
        half = population.to(torch.float16)
        assert {getattr(half, field.name).dtype for field in dataclasses.fields(half)} == {torch.float16}
        tracked = population.map(lambda tensor: tensor.clone().requires_grad_())
        assert tracked.shape.requires_grad and not tracked.detach().shape.requires_grad


class TestFiles:
    def test_what_ships(self, predictor):
        files = {path.name: path.stat().st_size for path in SHIPPED_PREDICTOR.iterdir()}
        assert files.keys() == {"config.json", "diffusion_pytorch_model.safetensors", "README.md"}
        assert files["diffusion_pytorch_model.safetensors"] <= 2_000_000
        card = (SHIPPED_PREDICTOR / "README.md").read_text()
        assert "license: " in card and "MIT" in card and "examples/landmark_predictor/train.py" in card
        assert tuple(predictor.config.expression_names) == EXPRESSION_NAMES
        assert tuple(predictor.config.mirror) == MIRROR
        assert not predictor.training

    def test_save_and_load(self, predictor, population, tmp_path):
        predictor.save_pretrained(tmp_path)
        loaded = LandmarkPredictor.from_pretrained(tmp_path)
        seen = observe(written_out(predictor, population))[:3, :68, :2].float()
        assert torch.equal(loaded.retarget(seen.flip(0), seen), predictor.retarget(seen.flip(0), seen))


class TestWrongInput:
    @pytest.mark.parametrize("shape", [(68, 2), (1, 67, 2), (1, 68, 4), (1, 68, 1), (1, 1, 68, 2)])
    def test_landmark_shape(self, predictor, shape):
        with pytest.raises(InputError, match="landmarks must have shape"):
            predictor.encode(torch.zeros(shape))

    def test_landmark_values(self, predictor):
        points = predictor.decode(neutral(predictor))[:, :68]
        with pytest.raises(InputError, match="floating point"):
            predictor.encode(points.long())
        for value in (torch.nan, torch.inf):
            broken = points.clone()
            broken[0, 9, 1] = value
            with pytest.raises(InputError, match="not finite"):
                predictor.encode(broken)

    def test_visibility(self, predictor):
        points = predictor.decode(neutral(predictor))
        with pytest.raises(InputError, match="visibility must have shape"):
            predictor.encode(points, torch.ones(1, 68))
        with pytest.raises(InputError, match="fewer than six"):
            predictor.encode(points, torch.arange(72)[None] < 5)
        assert torch.isfinite(predictor.encode(points, torch.arange(72)[None] < 6).shape).all()

    def test_decoding(self, predictor):
        face = neutral(predictor)
        with pytest.raises(InputError, match="dimensions must be 2 or 3"):
            predictor.decode(face, dimensions=4)
        with pytest.raises(InputError, match=r"coefficients.expression must have shape \(1, 53\)"):
            predictor.decode(dataclasses.replace(face, expression=torch.zeros(1, 52)))

    def test_batches_that_do_not_fit(self, predictor, population):
        with pytest.raises(InputError, match="reference has 2 faces and driving has 3"):
            predictor.retarget(population[:2], population[:3])

    def test_mirror(self):
        with pytest.raises(InputError, match="mirror must pair up"):
            LandmarkPredictor(expression_names=["jawOpen"], mirror=list(range(1, 72)) + [0])
