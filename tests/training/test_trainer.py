"""Training runs on tiny real components: what they change, and all options."""

import copy
import sys

import numpy as np
import pytest
import tiny
import tiny_training
import torch
from onnx_files import write_iresnet
from tiny_training import assert_same, train

from facesnap_diffusers import FaceSnapPipeline, InputError, MissingDependencyError
from facesnap_diffusers.training.trainer import Trainer


pytestmark = pytest.mark.slow


def test_only_the_trained_parts_change(base, faces, tmp_path):
    trainer = Trainer(tiny_training.config(base, faces, tmp_path, batch_size=4))
    frozen = {
        name: copy.deepcopy(component.state_dict())
        for name, component in trainer.pipeline.components.items()
        if isinstance(component, torch.nn.Module) and name not in ("mixer", "ffrnet", "identity_attention")
    }
    frozen["recognizer"] = copy.deepcopy(trainer.objective.recognizer.state_dict())
    assert {"unet", "vae", "text_encoder", "face_image_encoder", "landmark_predictor"} <= frozen.keys()
    trained = {name: parameter.detach().clone() for name, parameter in trainer.objective.named_parameters()}
    gradients: dict[str, float] = {}
    zero_grad = trainer.optimizer.zero_grad

    def record(*arguments, **keywords):
        for name, parameter in trainer.objective.named_parameters():
            gradients[name] = max(gradients.get(name, 0.0), parameter.grad.abs().max().item())
        zero_grad(*arguments, **keywords)

    trainer.optimizer.zero_grad = record
    trainer.train()

    # the keys' projection of a single text token's bias and the like aside, everything learns
    assert {name for name, size in gradients.items() if size == 0} <= {"parts.mixer.unconditional_tokens"}
    for part in ("mixer", "ffrnet", "identity_attention"):
        assert any(name.startswith(f"parts.{part}.") for name in trained)
    for name, parameter in trainer.objective.named_parameters():
        assert gradients[name] == 0 or not torch.equal(parameter, trained[name]), name
    for name, state in frozen.items():
        component = trainer.objective.recognizer if name == "recognizer" else getattr(trainer.pipeline, name)
        assert all(parameter.grad is None for parameter in component.parameters())
        assert_same(state, dict(component.state_dict()), name)


@pytest.mark.parametrize("part", ["mixer", "ffrnet", "identity_attention"])
def test_each_part_trains_alone(base, faces, tmp_path, part):
    trainer = train(
        tiny_training.config(base, faces, tmp_path, steps=1, adapter={"train": [part]}, optimizer={"warmup_steps": 0})
    )
    assert {name.split(".")[1] for name, _ in trainer.objective.named_parameters()} == {part}
    loaded = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
    loaded.load_facesnap_adapter(tmp_path / "adapter")
    assert loaded.facesnap_config.parts == ["mixer", "identity_attention", "ffrnet", "landmark_predictor"]


def test_overfits_eight_people(tmp_path):
    """The diffusion loss (min-SNR weighted) falls to under 0.7 and L_id to under 0.75 of what they were before."""
    tiny_training.write_base(tmp_path / "base", "v_prediction")
    tiny_training.write_faces(tmp_path / "faces", people=8, photos=2)
    config = tiny_training.config(
        tmp_path / "base",
        tmp_path / "faces",
        tmp_path / "run",
        steps=80,
        batch_size=4,
        data={
            "validation": [str(tmp_path / "faces")],
            "zoom": [1, 1],
            "flip": 0,
            "reference_flip": 0,
            "reference_jitter": 0,
        },
        dropout={"text": 0, "identity": 0, "both": 0, "landmarks": 0},
        optimizer={"learning_rate": 4e-3},
        validation={"batches": 8, "images": 0},
        log_every=80,
    )
    trainer = Trainer(config)
    trainer.folder.mkdir()
    before = trainer._validate(0)
    after = trainer.train()
    assert after["validation/diffusion"] < 0.7 * before["validation/diffusion"]
    assert after["validation/identity"] < 0.75 * before["validation/identity"]


class TestOptions:
    @pytest.mark.parametrize(
        "changes",
        [
            {
                "identity_loss": {"mode": "few_step", "every": 2, "steps": 3, "gradient_steps": 2},
                "loss": {"extra": "test_trainer:extra_loss"},
            },
            {
                "identity_loss": {"weight": 0.0, "recognizer": None, "every": 2, "steps": 2},
                "loss": {"extra": "test_trainer:extra_loss", "extra_samples": True},
            },
            {"identity_loss": {"reference": "photo"}},
            {"identity_loss": {"reference": "target", "contrastive": 0.1, "negatives": 3}},
            {"identity_loss": {"weight": 0.0, "recognizer": None}},
            {"gradient_checkpointing": True},
            {"mixed_precision": "bf16"},
            {"optimizer": {"name": "adafactor"}},
            {
                "optimizer": {
                    "name": "adamw_fused",
                    "learning_rate": {"mixer": 1e-3, "ffrnet": 1e-4, "identity_attention": 1e-2},
                }
            },
            {"loss": {"min_snr_gamma": None, "face_weight": 3.0, "extra": "test_trainer:extra_loss"}},
            {"data": {"landmarks": "detected", "workers": 1}},
            {"ema_decay": 0.0},
            {"trackers": ["tensorboard"]},
        ],
        ids=lambda changes: ",".join(f"{key}:{value}" for key, value in changes.items())[:40],
    )
    def test_run(self, base, faces, tmp_path, changes):
        if "trackers" in changes:
            pytest.importorskip("tensorboard")
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=2, validation={"batches": 0}, **changes))
        assert all(np.isfinite(value) for value in trainer.results.values())
        if trainer.config.identity_loss.mode == "few_step":
            assert 0 < trainer.results["identity"] < 2 and trainer.results["identity_share"] > 0
        if trainer.config.loss.extra:
            assert abs(trainer.results["extra"] - EXTRA) < 1e-6

    @pytest.mark.parametrize(
        ("changes", "kind", "said"),
        [
            ({"optimizer": {"name": "adamw_8bit"}}, MissingDependencyError, "pip install bitsandbytes"),
            ({"identity_loss": {"recognizer": {"network": "no.onnx"}}}, InputError, "'no.onnx' is neither a file nor"),
            ({"validation": {"judge": "nobody/knows"}, "data": {"validation": ["faces"]}}, InputError, "nobody/knows"),
            (
                {"trackers": ["tensorbord"]},
                InputError,
                "trackers: tensorbord is unknown; choose some of .*tensorboard",
            ),
        ],
    )
    def test_what_is_missing_is_said_before_the_base_is_loaded(
        self, faces, tmp_path, monkeypatch, changes, kind, said
    ):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        config = tiny_training.config(tmp_path / "no base", faces, tmp_path, **changes)
        with pytest.raises(kind, match=said):
            Trainer(config)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"network": f"{__name__}:Long"}, "of 256 numbers, with the adapter's dlib/.*, of 128"),
            ({"network": "insightface"}, "compares insightface/w600k_r50, .* the adapter's dlib/"),
            ({"center": "center"}, "has 7 numbers, the recognizer's embeddings 128; name its own"),
        ],
    )
    def test_embeddings_that_cannot_be_compared(self, base, faces, tmp_path, changes, said):
        if changes.get("network") == "insightface":
            changes = {"network": str(tmp_path / "w600k_r50.onnx"), "size": 32}
            write_iresnet(tmp_path / "w600k_r50.onnx")
        if "center" in changes:
            np.save(tmp_path / "center.npy", np.zeros(7))
            changes = {"center": str(tmp_path / "center.npy")}
        recognizer = {"network": "tiny_training:TinyRecognizer", "size": tiny_training.CROP_SIZE, **changes}
        config = tiny_training.config(
            base, faces, tmp_path / "run", identity_loss={"reference": "embedding", "recognizer": recognizer}
        )
        with pytest.raises(InputError, match=said):
            Trainer(config)

    def test_means_are_over_the_steps_that_have_a_loss(self, base, faces, tmp_path):
        """L_id at every second step only: logged once for two steps, or at each, it is what it was in the first."""
        identity_loss = {"mode": "few_step", "every": 2, "steps": 2}
        logged = [
            train(
                tiny_training.config(
                    base, faces, tmp_path / str(every), steps=2, log_every=every, identity_loss=identity_loss
                )
            ).results["identity"]
            for every in (1, 2)
        ]
        assert logged[0] == pytest.approx(logged[1], rel=1e-6) and logged[0] > 0

    def test_validation_has_the_identity_loss(self, base, faces, tmp_path):
        identity_loss = {"mode": "few_step", "every": 4, "steps": 2, "start_step": 1}
        changes = {"identity_loss": identity_loss, "data": {"validation": [str(faces)]}}
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=1, **changes))
        assert trainer.results["validation/identity"] > 0 and "identity" not in trainer.results

    def test_gradient_checkpointing_changes_nothing(self, base, faces, tmp_path):
        weights = [
            train(
                tiny_training.config(base, faces, tmp_path / str(on), steps=2, gradient_checkpointing=on)
            ).objective.state_dict()
            for on in (False, True)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name in weights[0]:
            assert torch.allclose(weights[0][name], weights[1][name], atol=1e-5), name

    def test_validation_and_adapter(self, base, faces, tmp_path):
        config = tiny_training.config(
            base, faces, tmp_path, data={"validation": [str(faces)]}, data_statement="Colours.", mixed_precision="bf16"
        )
        trainer = train(config)
        assert 0 < trainer.results["validation/mse"] < 3
        assert (tmp_path / "validation/step-0000004.png").is_file()
        card = (tmp_path / "adapter/README.md").read_text()
        assert "Colours." in card and "| data | 12 photos of 4 people |" in card and "| steps | 4 |" in card
        assert "validation/mse" in card and "min_snr_gamma: 5.0" in card and str(base) not in card
        pipe = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
        pipe.load_facesnap_adapter(tmp_path / "adapter")
        averaged = dict(zip((name for name, _ in trainer.objective.named_parameters()), trainer.ema.shadow_params))
        assert torch.equal(pipe.mixer.face_proj.weight, averaged["parts.mixer.face_proj.weight"])

    def test_going_on_with_an_adapter(self, base, faces, tmp_path):
        first = train(tiny_training.config(base, faces, tmp_path / "first", steps=2, ema_decay=0.0))
        second = Trainer(
            tiny_training.config(
                base, faces, tmp_path / "second", adapter={"start_from": str(tmp_path / "first/adapter")}
            )
        )
        assert_same(dict(first.objective.state_dict()), dict(second.objective.state_dict()))


class Long(tiny_training.TinyRecognizer):
    def forward(self, crops):
        return super().forward(crops).repeat(1, 2)


EXTRA = 0.25


def extra_loss(objective, batch, identity_tokens, text_embeds, latents, predicted_latents, sampled_latents, step):
    assert identity_tokens.shape[0] == text_embeds.shape[0] == len(batch["caption"]) and step >= 0
    pictures = objective.decode_latents(torch.stack([latents, predicted_latents]).flatten(0, 1))
    assert len(pictures) == 2 * len(batch["caption"]) and torch.isfinite(pictures).all()
    due = objective.takes_samples and step % objective.identity_loss.every == 0
    assert (sampled_latents is not None) == due
    if sampled_latents is not None:
        assert sampled_latents.requires_grad and sampled_latents.shape == latents.shape
    return 0 * identity_tokens.mean() + EXTRA


class TestSDXL:
    def test_run(self, faces, tmp_path):
        pipe = tiny.xl_pipeline()
        pipe.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        pipe.save_pretrained(tmp_path / "base")
        tiny.image_encoder().save_pretrained(tmp_path / "base/face_encoder")
        config = tiny_training.config(
            tmp_path / "base",
            faces,
            tmp_path / "run",
            steps=2,
            base={"family": "sdxl"},
            data={"validation": [str(faces)]},
        )
        trainer = train(config)
        assert 0 < trainer.results["validation/mse"] < 10
