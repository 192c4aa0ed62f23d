"""The whole training loss of a tiny pipeline, in float64."""

import dataclasses

import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from smooth_recognizer import SmoothRecognizer
from torch import nn

from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.data.recognition_crop import align_faces
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.recognizer import FaceRecognizer
from facesnap_diffusers.training.training_config import IdentityLossConfig, LossConfig


class TestObjective:
    """The whole loss of a tiny pipeline in float64."""

    @staticmethod
    def objective(prediction_type="v_prediction", loss=None, **identity_loss):
        base = tiny.sd_pipeline()
        base.scheduler.register_to_config(prediction_type=prediction_type)
        pipe = FaceSnapPipeline.from_pipe(base)
        pipe.set_progress_bar_config(disable=True)
        tiny.add_adapter(pipe)
        for component in pipe.components.values():
            if isinstance(component, nn.Module) and component is not pipe.landmark_predictor:
                component.double().requires_grad_(False).eval()
        recognizer = FaceRecognizer(SmoothRecognizer().double(), size=32)
        config = IdentityLossConfig(**{"weight": 1.0, "reference": "photo", "min_snr": 1e-6, **identity_loss})
        parts = ["mixer", "ffrnet", "identity_attention"]
        return Objective(pipe, parts, loss or LossConfig(), config, recognizer)

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
            "clip_crop": normal(3, 32, 32),
            "recognition_crop": torch.rand(size, 3, 32, 32, generator=generator, dtype=torch.float64),
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
            noisy = objective.noise_schedule.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            predicted = objective.predict(noisy, batch["timestep"], conditions)
            return objective._identity_of_prediction(noisy, predicted, batch["timestep"], batch)[0]

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
        with torch.no_grad():
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
        with torch.no_grad():
            sampled = objective.sample(batch["start_noise"], objective.encode_conditions(batch))
            both, share, _ = objective._identity_of_sample(sampled, batch)
            assert share == 1 and both > 0
            found = []
            for left_out in ("without_landmarks", "without_identity"):
                changed = {**batch, left_out: torch.tensor([True, False])}
                loss, share, _ = objective._identity_of_sample(sampled, changed)
                assert share == 0.5 and 0 < loss < both
                found.append(loss)
            assert found[0] == found[1]
            nobody = {**batch, "without_landmarks": torch.tensor([True, True])}
            assert objective._identity_of_sample(sampled, nobody) == (0, 0, 0)

    def test_few_steps_need_ffrnet(self):
        objective = self.objective()
        pipe = objective.pipeline
        pipe.ffrnet = None
        config = IdentityLossConfig(weight=1.0, mode="few_step")
        with pytest.raises(InputError, match="few_step looks for faces where FFRNet puts them"):
            Objective(pipe, ["mixer"], LossConfig(), config, objective.recognizer)

    def test_stored_embeddings_are_relative_to_the_recognizers_center(self):
        objective, batch = self.objective(), self.batch()
        config, clean = objective.identity_loss, batch["latents"]
        batch["face_embeds"] = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        objective.recognizer.center = torch.linspace(-1, 1, 16, dtype=torch.float64)
        objective.identity_loss = dataclasses.replace(config, reference="embedding")
        everybody = torch.ones(2, dtype=torch.bool)
        found = 1 - nn.functional.cosine_similarity(*objective._embeds(clean, batch, everybody))
        crops = align_faces(objective.decode_latents(clean), batch["detected"], "arcface", 32)
        raw = objective.recognizer.network(crops * 2 - 1)
        center = objective.recognizer.center
        expected = 1 - nn.functional.cosine_similarity(raw - center, batch["face_embeds"] - center)
        assert torch.allclose(found, expected, atol=1e-8)

    def test_gradient_goes_through_the_last_steps_only(self):
        batch, found = self.batch(1), []
        for gradient_steps in (1, 3):
            objective = self.objective(mode="few_step", steps=3, gradient_steps=gradient_steps)
            counted = []
            predict = objective.predict
            objective.predict = lambda *inputs, predict=predict, counted=counted: (
                counted.append(torch.is_grad_enabled()) or predict(*inputs)
            )
            objective.sample(batch["start_noise"], objective.encode_conditions(batch))
            found.append(counted)
        assert found == [[False, False, True], [True, True, True]]

    def test_landmarks_are_embedded_once(self):
        """In however many predictions a step needs them: those of the diffusion loss and of three sampling steps."""
        objective, batch = self.objective(every=1, mode="few_step", steps=3), self.batch()
        embedded = []
        layer = objective.pipeline.ffrnet.controlnet_cond_embedding.conv_in
        layer.register_forward_hook(lambda *_: embedded.append(True))
        objective(batch)["loss"].backward()
        assert len(embedded) == 1 and layer.weight.grad is not None


class TestTarget:
    """The identity loss against the target, and InfoNCE with embeddings of other people."""

    def test_a_perfect_reconstruction_costs_next_to_nothing(self):
        """Against another photo it does cost something, which no training can take away."""
        objective, batch = TestObjective.objective(), TestObjective.batch()
        clean, everybody = batch["latents"], torch.ones(2, dtype=torch.bool)
        with torch.no_grad():
            images = objective.decode_latents(clean)
        batch["target_recognition_crop"] = align_faces(images, batch["detected"], "arcface", 32)
        losses = {}
        for reference in ("photo", "target"):
            objective.identity_loss = dataclasses.replace(objective.identity_loss, reference=reference)
            losses[reference] = objective._identity(clean, batch, everybody, clean)[0].item()
        assert losses["target"] < 1e-6 < 0.01 < losses["photo"]

    def test_contrastive_part(self):
        """Against cross entropy over cosines, without the negatives that are the sample's own person."""
        objective = TestObjective.objective(contrastive=0.3, temperature=0.2)
        assert objective.extras == {"recognition_crop", "person"}
        batch = {**TestObjective.batch(), "person": torch.tensor([7, 9])}
        crops = torch.rand(5, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        people = torch.tensor([1, 7, 3, 9, 9])
        objective.set_negatives(crops, torch.zeros(5, 1), people)
        everybody = torch.ones(2, dtype=torch.bool)
        found = objective._identity(batch["latents"], batch, everybody, batch["latents"])[2]
        embeds, reference = objective._embeds(batch["latents"], batch, everybody)
        others = objective.recognizer.embed(crops)
        expected = []
        for number in range(2):
            wrong = others[people != batch["person"][number]]
            cosines = torch.cat([reference[number][None], wrong]) @ embeds[number] / 0.2
            expected.append(nn.functional.cross_entropy(cosines[None], torch.tensor([0])))
        assert torch.allclose(found, sum(expected) / 2, atol=1e-6) and found > 0

        losses = objective(batch)
        weight = objective.identity_loss.weight
        total = losses["diffusion"] + weight * losses["identity"] + 0.3 * weight * losses["contrastive"]
        assert torch.allclose(losses["loss"], total) and losses["contrastive"] > 0

    def test_stored_embeddings_as_negatives(self):
        objective = TestObjective.objective(contrastive=1.0)
        objective.identity_loss = dataclasses.replace(objective.identity_loss, reference="embedding")
        embeds = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        objective.set_negatives(None, embeds, torch.arange(3))
        assert torch.allclose(objective._negatives[0], nn.functional.normalize(embeds, dim=-1))


#: What the extra loss of these tests was last called with.
GIVEN = {}


def extra_loss(**given):
    GIVEN.update(given)
    sampled = given["sampled_latents"]
    return given["latents"].new_zeros(()) if sampled is None else 0.5 * sampled.square().mean()


class TestSamplesForTheExtraLoss:
    @pytest.mark.parametrize("weight", [0.0, 1.0])
    @pytest.mark.parametrize("mode", ["prediction", "few_step"])
    def test_they_are_few_step_samples_and_gradients_flow(self, mode, weight):
        loss = LossConfig(extra="test_objective:extra_loss", extra_samples=True)
        sampling = {"mode": mode, "every": 3, "steps": 2, "gradient_steps": 2, "start_step": 1, "weight": weight}
        objective, batch = TestObjective.objective(loss=loss, **sampling), TestObjective.batch()
        assert objective.extras == ({"start_noise", "recognition_crop"} if weight else {"start_noise"})
        assert objective.first_identity_step == 3
        for step in (0, 1, 3):
            losses = objective(batch, step)
            taken = GIVEN["sampled_latents"]
            assert (taken is None) == (step == 1)
            due = weight > 0 and step > 0 and (mode == "prediction" or step == 3)
            assert ("identity" in losses) == due
            if step == 1:
                assert losses["extra"] == 0
                continue
            expected = objective.sample(batch["start_noise"], objective.encode_conditions(batch))
            assert torch.equal(taken, expected) and losses["extra"] == 0.5 * expected.square().mean()
            parameters = [objective.parts.mixer.face_proj.weight, objective.parts.ffrnet.controlnet_mid_block.weight]
            found = torch.autograd.grad(0.5 * taken.square().mean(), parameters)
            wanted = torch.autograd.grad(0.5 * expected.square().mean(), parameters)
            for gradient, other in zip(found, wanted):
                assert gradient.abs().max() > 1e-6 and torch.equal(gradient, other)

    def test_without_them_there_are_none(self):
        loss = LossConfig(extra="test_objective:extra_loss")
        objective = TestObjective.objective(loss=loss, mode="few_step", weight=0.0)
        objective(TestObjective.batch(), 0)
        assert GIVEN["sampled_latents"] is None and objective.extras == set()


class TestSamplesOfTheirOwn:
    """Resolution and prompt of the samples, against batches that were made so by hand."""

    SAMPLING = {"mode": "few_step", "every": 1, "steps": 2, "gradient_steps": 2}

    @staticmethod
    def identity(objective, batch):
        losses = objective(batch)
        return losses["identity"], losses["mse"]

    def test_resolution(self):
        """Pictures of 16×16 pixels, samples of 8×8."""
        objective, plain = (TestObjective.objective(**self.SAMPLING, **changes) for changes in ({"resolution": 8}, {}))
        batch = TestObjective.batch()
        small = {**batch, "noise": batch["noise"][..., :4, :4], "start_noise": batch["start_noise"][:, :, :4, :4]}
        # centers of pixels: 0 to 15 become -0.25 to 7.25
        small["landmarks"] = batch["landmarks"] / 2 - 0.25
        small["detected"] = batch["detected"] / 2 - 0.25
        with torch.no_grad():
            found, mse = self.identity(objective, batch)
            sampled = plain.sample(small["start_noise"], plain.encode_conditions(small))
            expected = plain._identity_of_sample(sampled, small)[0]
            large, same_mse = self.identity(plain, batch)
        assert sampled.shape == (2, 4, 4, 4)
        assert torch.allclose(found, expected, atol=1e-9) and abs(found - large) > 1e-3
        assert mse == same_mse

    def test_sizes_of_other_proportions(self):
        """64 × 36 pixels at a resolution of 24: of 576 of them, in these proportions."""
        objective = TestObjective.objective(**self.SAMPLING, resolution=24)
        batch = TestObjective.batch(1)
        batch |= {
            "noise": torch.zeros(1, 4, 32, 18), "start_noise": torch.randn(1, 4, 32, 18),
            "detected": torch.tensor([[[-0.5, -0.5], [35.5, 63.5]]]), "key_points": torch.tensor([[[17.5, 31.5]]]),
            "sizes": torch.tensor([[400, 300, 10, 20, 64, 36]]),
        }  # fmt: skip
        small = objective.sampled_batch(batch)
        assert small["start_noise"].shape == (1, 4, 16, 9)
        assert small["detected"].tolist() == [[[-0.5, -0.5], [17.5, 31.5]]]
        assert small["key_points"].tolist() == [[[8.5, 15.5]]]
        assert small["sizes"].tolist() == [[400, 300, 5, 10, 32, 18]]
        assert batch["detected"][0, 1].tolist() == [35.5, 63.5]

    def test_prompt(self):
        objective = TestObjective.objective(**self.SAMPLING, prompt="portrait, color")
        plain, batch = TestObjective.objective(**self.SAMPLING), TestObjective.batch()
        batch["without_text"] = torch.tensor([True, False])
        told = {**batch, "caption": ["portrait, color"] * 2, "without_text": torch.tensor([False, False])}
        with torch.no_grad():
            (found, mse), (_, same_mse) = self.identity(objective, batch), self.identity(plain, batch)
            (expected, _), (other, _) = self.identity(plain, told), self.identity(plain, batch)
        assert torch.allclose(found, expected, atol=1e-12) and abs(found - other) > 1e-6
        assert mse == same_mse

    def test_nothing_is_changed_without_them(self):
        objective, batch = TestObjective.objective(**self.SAMPLING), TestObjective.batch()
        assert objective.sampled_batch(batch) is batch
