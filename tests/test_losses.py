"""The parts of the training loss against closed forms, finite differences and other implementations."""

import dataclasses
import sys
import types
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import tiny
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import nn

from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.faces.key_points import five_points
from facesnap_diffusers.faces.analyzers.dlib import RECOGNIZER_FILE, dlib_models
from facesnap_diffusers.training.alignment import align_faces
from facesnap_diffusers.training.config import IdentityLossConfig, LossConfig, RecogniserConfig
from facesnap_diffusers.training.dlib_network import load_dlib_network
from facesnap_diffusers.training.losses import NoiseSchedule, face_weights, identity_distance
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.recogniser import FaceRecogniser, load_network, load_recogniser


PHOTOS = Path(__file__).parents[2] / "shared/data/photos"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the test photos in ../shared/data/photos")


def schedule(prediction_type="epsilon", zero_snr=False):
    scheduler = DDIMScheduler.from_config(
        tiny.scheduler().config, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr
    )
    return NoiseSchedule(scheduler), scheduler


def samples(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 4, 8, 8, generator=generator).to(dtype)


@pytest.mark.parametrize(
    ("prediction_type", "zero_snr"), [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]
)
class TestNoiseSchedule:
    timesteps = torch.tensor([0, 37, 500, 990])

    def test_agrees_with_the_scheduler(self, prediction_type, zero_snr):
        ours, scheduler = schedule(prediction_type, zero_snr)
        clean, noise = samples()
        noisy = ours.add_noise(clean, noise, self.timesteps)
        assert torch.allclose(noisy, scheduler.add_noise(clean, noise, self.timesteps), atol=1e-5)
        if prediction_type == "v_prediction":
            velocity = scheduler.get_velocity(clean, noise, self.timesteps)
            assert torch.allclose(ours.target(clean, noise, self.timesteps), velocity, atol=1e-5)
        assert torch.allclose(ours.snr(self.timesteps), compute_snr(scheduler, self.timesteps), rtol=1e-3)

    def test_clean_and_noise_invert_the_target(self, prediction_type, zero_snr):
        ours, _ = schedule(prediction_type, zero_snr)
        clean, noise = samples(dtype=torch.float64)
        noisy = ours.add_noise(clean, noise, self.timesteps)
        target = ours.target(clean, noise, self.timesteps)
        assert torch.allclose(ours.clean(noisy, target, self.timesteps), clean, atol=1e-9)
        assert torch.allclose(ours.noise(noisy, target, self.timesteps), noise, atol=1e-9)

    def test_min_snr_weighs_the_error_of_the_clean_sample(self, prediction_type, zero_snr):
        ours, _ = schedule(prediction_type, zero_snr)
        clean, noise = samples(dtype=torch.float64)
        noisy = ours.add_noise(clean, noise, self.timesteps)
        target = ours.target(clean, noise, self.timesteps)
        predicted = target + 0.1 * samples(1, torch.float64)[0]
        of_prediction = (predicted - target).square().mean((1, 2, 3))
        of_clean = (ours.clean(noisy, predicted, self.timesteps) - clean).square().mean((1, 2, 3))
        expected = ours.snr(self.timesteps).clamp(max=5) * of_clean
        assert torch.allclose(ours.min_snr_weight(self.timesteps, 5.0) * of_prediction, expected, rtol=1e-4)


def test_zero_terminal_snr_with_epsilon_is_refused():
    with pytest.raises(InputError, match="zero terminal SNR"):
        schedule("epsilon", zero_snr=True)
    ours, _ = schedule("v_prediction", zero_snr=True)
    last = torch.tensor([999])
    assert ours.snr(last) == 0 and torch.isfinite(ours.min_snr_weight(last, 5.0)).all()


def test_face_weights():
    landmarks = torch.rand(2, 72, 2) * 16 + torch.tensor([32.0, 8.0])  # right of the middle, at the top
    weights = face_weights(landmarks, (64, 64), (8, 8), 4.0)
    assert weights.shape == (2, 1, 8, 8) and torch.allclose(weights.mean((1, 2, 3)), torch.ones(2))
    face, corner = weights[:, 0, 2, 5], weights[:, 0, 7, 0]
    assert torch.allclose(face / corner, torch.full((2,), 4.0), rtol=0.2)


@pytest.fixture(scope="module")
def faces():
    """Photos of faces with dlib's 68 landmarks."""
    pytest.importorskip("dlib")
    from facesnap_diffusers import DlibFaceAnalyzer

    analyzer = DlibFaceAnalyzer()
    names = ["man_a_smiling", "woman_older", "woman_rolled_head", "man_happy"]
    found = [analyzer.analyze(np.array(PIL.Image.open(PHOTOS / f"{name}.jpg").convert("RGB")))[0] for name in names]
    assert len(found) == 4
    return found


def as_batch(face):
    pixels = torch.from_numpy(face.image).permute(2, 0, 1)[None] / 255
    return pixels, torch.from_numpy(face.landmarks)[None]


@needs_photos
class TestAlignment:
    def test_equals_norm_crop_of_insightface(self, faces):
        from insightface.utils.face_align import norm_crop

        for face in faces:
            expected = norm_crop(face.image, five_points(face.landmarks).astype(np.float32))
            ours = align_faces(*as_batch(face), "arcface")[0].permute(1, 2, 0).numpy()
            assert np.abs(ours * 255 - expected).mean() <= 2

    @pytest.mark.parametrize("turn", [0, 35])
    def test_equals_face_chip_of_dlib(self, faces, turn):
        import dlib

        for face in faces:
            # dlib averages where it shrinks a lot: bring the face to about the chip's size
            scale = 150 / np.ptp(face.landmarks[:, 0])
            angle = np.radians(turn)
            height, width = face.image.shape[:2]
            image = PIL.Image.fromarray(face.image)
            image = image.resize((round(width * scale), round(height * scale)), PIL.Image.Resampling.LANCZOS)
            points = (face.landmarks + 0.5) * scale
            centre = np.array(image.size) / 2
            image = image.rotate(turn, PIL.Image.Resampling.BICUBIC)
            rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            points = np.round((points - centre) @ rotation.T + centre - 0.5).astype(int)  # dlib's points are whole
            image = np.array(image)

            shape = dlib.full_object_detection(dlib.rectangle(0, 0, 9, 9), [dlib.point(*p) for p in points.tolist()])
            expected = dlib.get_face_chip(image, shape, 150, 0.25)
            pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
            ours = align_faces(pixels, torch.from_numpy(points)[None].float(), "dlib")[0].permute(1, 2, 0).numpy()
            assert np.abs(ours * 255 - expected).mean() <= 2


class TinyRecogniser(nn.Module):
    """Smooth, so that finite differences are exact enough."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.linear = nn.Linear(8 * 4 * 4, 16)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, crops):
        features = torch.tanh(self.conv(crops))
        return self.linear(nn.functional.adaptive_avg_pool2d(features, 4).flatten(1))


def test_gradient_of_the_identity_loss_agrees_with_finite_differences():
    """From the UNet's prediction through the clean latent, the VAE's decoder, the warp and the recogniser."""
    vae = tiny.sd_pipeline().vae.double()
    recogniser = FaceRecogniser(TinyRecogniser().double(), size=32)
    noises, _ = schedule("v_prediction")
    clean, noise = samples(2, torch.float64)
    timesteps = torch.tensor([100, 200, 300, 400])
    noisy = noises.add_noise(clean, noise, timesteps)
    landmarks = (tiny.face_points() * 0.12 + 1).double()[None].repeat(4, 1, 1)
    reference = torch.randn(4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def loss(predicted):
        images = vae.decode(noises.clean(noisy, predicted, timesteps) / vae.config.scaling_factor).sample
        return identity_distance(recogniser(images / 2 + 0.5, landmarks), reference).mean()

    predicted = samples(4, torch.float64)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(predicted), predicted)
    with torch.no_grad():
        for seed in range(8):
            direction = torch.randn(
                predicted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
            )
            step = 1e-5 * direction
            difference = (loss(predicted + step) - loss(predicted - step)) / 2e-5
            assert abs(difference) > 1e-6
            assert torch.allclose((gradient * direction).sum(), difference, rtol=0.01)


class TestObjective:
    """The whole loss of a tiny pipeline in float64."""

    @staticmethod
    def objective(prediction_type="v_prediction", **identity_loss):
        base = tiny.sd_pipeline()
        base.scheduler.register_to_config(prediction_type=prediction_type)
        pipe = FaceSnapPipeline.from_pipe(base)
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe)
        for component in pipe.components.values():
            if isinstance(component, nn.Module) and component is not pipe.landmark_predictor:
                component.double().requires_grad_(False).eval()
        recogniser = FaceRecogniser(TinyRecogniser().double(), size=32)
        config = IdentityLossConfig(weight=1.0, reference="photo", min_snr=1e-6, **identity_loss)
        parts = ["mixer", "ffrnet", "identity_attention"]
        return Objective(pipe, parts, LossConfig(), config, recogniser)

    @staticmethod
    def batch(size=2):
        generator = torch.Generator().manual_seed(7)
        points = (tiny.face_points() * 0.12 + 1).double()[None].repeat(size, 1, 1)
        points = torch.cat([points, points[:, 36:40]], dim=1)
        no = torch.zeros(size, dtype=torch.bool)

        def normal(*shape):
            return torch.randn(size, *shape, generator=generator, dtype=torch.float64)

        return {
            "latents": normal(4, 8, 8),
            "noise": normal(4, 8, 8),
            "start_noise": normal(4, 8, 8),
            "timestep": torch.tensor([150, 400])[:size],
            "landmarks": points.float(),
            "detected": points,
            "face_embeds": 0.1 * normal(tiny.FACE_EMBED_DIM),
            "head": normal(3, 32, 32),
            "reference_face": torch.rand(size, 3, 32, 32, generator=generator, dtype=torch.float64),
            "caption": ["one", "two"][:size],
            "without_text": no,
            "without_identity": no,
            "without_landmarks": no,
        }

    @pytest.mark.parametrize("mode", [{"mode": "prediction"}, {"mode": "few_step", "steps": 2, "gradient_steps": 2}])
    def test_gradient_of_the_identity_loss_by_the_adapter(self, mode):
        """Of the weights of all three parts, against finite differences."""
        objective, batch = self.objective(every=1, **mode), self.batch()

        def identity_loss():
            conditions = objective.encode_conditions(batch)
            if mode["mode"] == "few_step":
                return objective._identity_of_sample(objective.sample(batch["start_noise"], conditions), batch)[0]
            noisy = objective.schedule.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            predicted = objective.predict(noisy, batch["timestep"], conditions)
            return objective._identity_of_prediction(noisy, predicted, batch["timestep"], batch)[0]

        with objective.attached():
            parameters = list(objective.parameters())
            gradients = torch.autograd.grad(identity_loss(), parameters, allow_unused=True)
            for part, module in objective.parts.items():
                chosen = {id(parameter) for parameter in module.parameters()}
                generator = torch.Generator().manual_seed(0)
                directions = [
                    torch.randn(p.shape, generator=generator, dtype=p.dtype) if id(p) in chosen else None
                    for p in parameters
                ]
                expected = sum(
                    (gradient * direction).sum()
                    for gradient, direction in zip(gradients, directions)
                    if gradient is not None and direction is not None
                )
                losses = []
                with torch.no_grad():
                    for step in (1e-6, -2e-6):
                        for parameter, direction in zip(parameters, directions):
                            if direction is not None:
                                parameter += step * direction
                        losses.append(identity_loss())
                    for parameter, direction in zip(parameters, directions):
                        if direction is not None:
                            parameter += 1e-6 * direction
                difference = (losses[0] - losses[1]) / 2e-6
                assert abs(difference) > 1e-5, part
                assert abs(difference / expected - 1) < 0.01, part

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_few_steps_are_those_of_ddim(self, prediction_type):
        objective, batch = self.objective(prediction_type, mode="few_step", steps=4), self.batch()
        scheduler = DDIMScheduler.from_config(
            tiny.scheduler().config, prediction_type=prediction_type, timestep_spacing="trailing", steps_offset=0
        )
        scheduler.set_timesteps(4)
        with torch.no_grad(), objective.attached():
            conditions = objective.encode_conditions(batch)
            ours = objective.sample(batch["start_noise"], conditions)
            sample = batch["start_noise"]
            for timestep in scheduler.timesteps:
                predicted = objective.predict(sample, timestep.expand(2), conditions)
                step = scheduler.step(predicted, timestep, sample)
                sample = step.prev_sample
        assert torch.allclose(ours, step.pred_original_sample, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours, batch["start_noise"], atol=0.1)

    def test_samples_at_no_known_place_do_not_count(self):
        """Without landmarks nobody knows where the face is, and without an identity whose it should be."""
        objective, batch = self.objective(mode="few_step", steps=2), self.batch()
        with torch.no_grad(), objective.attached():
            sampled = objective.sample(batch["start_noise"], objective.encode_conditions(batch))
            both, share = objective._identity_of_sample(sampled, batch)
            assert share == 1 and both > 0
            found = []
            for left_out in ("without_landmarks", "without_identity"):
                changed = {**batch, left_out: torch.tensor([True, False])}
                loss, share = objective._identity_of_sample(sampled, changed)
                assert share == 0.5 and 0 < loss < both
                found.append(loss)
            assert found[0] == found[1]
            nobody = {**batch, "without_landmarks": torch.tensor([True, True])}
            assert objective._identity_of_sample(sampled, nobody) == (0, 0)

    def test_few_steps_need_ffrnet(self):
        objective = self.objective()
        pipe = objective.pipeline
        pipe.ffrnet = None
        config = IdentityLossConfig(weight=1.0, mode="few_step")
        with pytest.raises(InputError, match="few_step looks for faces where FFRNet puts them"):
            Objective(pipe, ["mixer"], LossConfig(), config, objective.recogniser)

    def test_stored_embeddings_are_relative_to_the_recognisers_center(self):
        objective, batch = self.objective(), self.batch()
        config, clean = objective.identity_loss, batch["latents"]
        batch["face_embeds"] = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        objective.recogniser.center = torch.linspace(-1, 1, 16, dtype=torch.float64)
        objective.identity_loss = dataclasses.replace(config, reference="embedding")
        everybody = torch.ones(2, dtype=torch.bool)
        found = objective._distance(clean, batch, everybody)
        crops = align_faces(objective.decode_latents(clean), batch["detected"], "arcface", 32)
        raw = objective.recogniser.network(crops * 2 - 1)
        center = objective.recogniser.center
        expected = 1 - nn.functional.cosine_similarity(raw - center, batch["face_embeds"] - center)
        assert torch.allclose(found, expected, atol=1e-8)

    def test_gradient_goes_through_the_last_steps_only(self):
        batch, found = self.batch(1), []
        for gradient_steps in (1, 3):
            objective = self.objective(mode="few_step", steps=3, gradient_steps=gradient_steps)
            counted = []
            predict = objective.predict
            objective.predict = lambda *inputs, predict=predict: (
                counted.append(torch.is_grad_enabled()) or predict(*inputs)
            )
            with objective.attached():
                objective.sample(batch["start_noise"], objective.encode_conditions(batch))
            found.append(counted)
        assert found == [[False, False, True], [True, True, True]]


class TestRecogniser:
    def test_convention_and_frozen(self):
        recogniser = FaceRecogniser(TinyRecogniser(), size=32, bgr=True)
        recogniser.train()
        assert not recogniser.training and not any(p.requires_grad for p in recogniser.parameters())
        crops = torch.rand(2, 3, 32, 32)
        embeds = recogniser.embed(crops)
        expected = nn.functional.normalize(TinyRecogniser()(crops[:, [2, 1, 0]] * 2 - 1), dim=-1)
        assert torch.allclose(embeds, expected, atol=1e-6)

    def test_relative_to_a_center(self, tmp_path):
        """The cosine of two embeddings is that of what is left without the center, in the loss too."""
        crops = torch.rand(4, 3, 32, 32)
        raw = TinyRecogniser()(crops * 2 - 1)
        center = raw.mean(0)
        np.save(tmp_path / "center.npy", center.detach().numpy())
        config = RecogniserConfig("test_losses:TinyRecogniser", size=32, center=str(tmp_path / "center.npy"))
        recogniser = load_recogniser(config)
        expected = nn.functional.normalize(raw - center, dim=-1)
        assert torch.allclose(recogniser.embed(crops), expected, atol=1e-5)
        assert torch.allclose(recogniser.relative(raw), expected, atol=1e-5)

    def test_a_wrong_center(self, tmp_path):
        np.save(tmp_path / "matrix.npy", np.zeros((3, 3)))
        (tmp_path / "notes.npy").write_bytes(b"nonsense")
        for name, reason in (
            ("matrix", "must have shape"),
            ("notes", "cannot be read"),
            ("missing", "cannot be read"),
        ):
            config = RecogniserConfig("test_losses:TinyRecogniser", center=str(tmp_path / f"{name}.npy"))
            with pytest.raises(InputError, match=reason):
                load_recogniser(config)

    def test_from_function(self):
        network = load_network("test_losses:TinyRecogniser")
        crops = torch.rand(1, 3, 32, 32)
        assert torch.equal(network(crops), TinyRecogniser()(crops))

    def test_from_export(self, tmp_path):
        crops = torch.rand(2, 3, 32, 32)
        batch = {0: torch.export.Dim("batch", min=1)}
        torch.export.save(
            torch.export.export(TinyRecogniser(), (crops,), dynamic_shapes=[batch]), tmp_path / "network.pt2"
        )
        recogniser = FaceRecogniser(load_network(str(tmp_path / "network.pt2")), size=32)
        crops = torch.rand(3, 3, 32, 32, requires_grad=True)
        embeds = recogniser.embed(crops)
        assert torch.allclose(embeds, FaceRecogniser(TinyRecogniser(), size=32).embed(crops), atol=1e-6)
        (gradient,) = torch.autograd.grad(embeds[0, 0], crops)
        assert gradient[0].any() and not gradient[1:].any()

    def test_dlibs_network_gives_dlibs_embeddings(self):
        """On any chip, against dlib's own implementation."""
        dlib = pytest.importorskip("dlib")
        network = load_network("facesnap_diffusers.training.dlib_network:load_dlib_network")
        own = dlib.face_recognition_model_v1(str(dlib_models() / RECOGNIZER_FILE))
        photo = skimage.data.astronaut()
        chips = np.stack([photo[40:190, 150:300], photo[200:350, 100:250], photo[0:300:2, 0:300:2]])
        expected = np.array([own.compute_face_descriptor(np.ascontiguousarray(chip)) for chip in chips])
        crops = (torch.from_numpy(chips).permute(0, 3, 1, 2) / 127.5 - 1).requires_grad_(True)
        embeds = network(crops)
        assert np.abs(embeds.detach().numpy() - expected).max() < 1e-5
        assert torch.equal(embeds, network.hidden_states(crops)[-1])
        (gradient,) = torch.autograd.grad(embeds[0].square().sum(), crops)
        assert gradient[0].any() and not gradient[1:].any()

    def test_another_file_is_not_dlibs_network(self, tmp_path):
        pytest.importorskip("dlib")
        whole = (dlib_models() / RECOGNIZER_FILE).read_bytes()
        within_sizes = whole.index(b"con_4") + 8
        for content in (b"nonsense", whole[:100_000], whole[100_000:], whole[:within_sizes]):
            (tmp_path / "network.dat").write_bytes(content)
            with pytest.raises(InputError, match="is not dlib's recogniser"):
                load_dlib_network(tmp_path / "network.dat")
        with pytest.raises(InputError, match="No such file"):
            load_dlib_network(tmp_path / "missing.dat")

    def test_from_onnx(self, tmp_path, monkeypatch):
        """The layers of InsightFace's ArcFace networks, against ONNX Runtime."""
        runtime = pytest.importorskip("onnxruntime")
        try:
            import torchvision  # noqa: F401
        except ImportError:
            # onnx2torch imports it for two detection operators that no recogniser has
            ops = types.ModuleType("torchvision.ops")
            ops.roi_align = None
            module = types.ModuleType("torchvision")
            module.ops = ops
            monkeypatch.setitem(sys.modules, "torchvision", module)
            monkeypatch.setitem(sys.modules, "torchvision.ops", ops)
        pytest.importorskip("onnx2torch", reason="needs onnx2torch")
        path = tmp_path / "arcface.onnx"
        write_arcface_onnx(path)

        crops = torch.rand(2, 3, 32, 32, requires_grad=True)
        network = load_network(str(path))
        embeds = network(crops)
        (expected,) = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
            None, {"input.1": crops.detach().numpy()}
        )
        assert embeds.shape == (2, 16)
        assert np.abs(embeds.detach().numpy() - expected).max() < 1e-4
        (gradient,) = torch.autograd.grad(embeds.square().sum(), crops)
        assert torch.isfinite(gradient).all() and gradient.any()

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.onnx", "neither a file nor"),
            ("no_such_module:function", "cannot be imported"),
            ("test_losses:samples", "must return"),
            ("notes.txt", "ends in none of"),
            ("broken.pt2", "cannot be loaded"),
        ],
    )
    def test_errors(self, name, reason, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for file in ("notes.txt", "broken.pt2"):
            Path(file).write_bytes(b"nonsense")
        with pytest.raises(InputError, match=reason):
            load_network(name)


def write_arcface_onnx(path):
    """A residual block with the operators of ArcFace's IResNet, as ONNX."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    weights = {
        "conv1": 0.2 * generator.standard_normal((8, 3, 3, 3)),
        "bias1": generator.standard_normal(8),
        "slope": generator.uniform(0.1, 0.4, (8, 1, 1)),
        "gamma": generator.uniform(0.5, 1.5, 8),
        "beta": generator.standard_normal(8),
        "mean": generator.standard_normal(8),
        "var": generator.uniform(0.5, 1.5, 8),
        "conv2": 0.2 * generator.standard_normal((8, 8, 3, 3)),
        "bias2": generator.standard_normal(8),
        "fc": 0.05 * generator.standard_normal((16, 8 * 16 * 16)),
        "fc_bias": generator.standard_normal(16),
    }
    nodes = [
        helper.make_node(
            "Conv", ["input.1", "conv1", "bias1"], ["a"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "var"], ["c"]),
        helper.make_node("Conv", ["c", "conv2", "bias2"], ["d"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Add", ["d", "b"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fc_bias"], ["683"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "arcface",
        [helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("683", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.save(model, str(path))
