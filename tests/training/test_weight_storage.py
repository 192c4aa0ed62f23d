"""The frozen UNet in float8: gradients, small FFRNets, resuming, and what is refused."""

import shutil

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from tiny_training import assert_same, train
from torch import nn

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training import trainer as trainer_module
from facesnap_diffusers.training.base import load_pipeline
from facesnap_diffusers.training.samples import collate
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.weight_storage import store_weights


FLOAT8 = {"base": {"storage_dtype": "float8_e4m3fn"}, "gradient_checkpointing": True}


def gradients(trainer):
    """Of all trained parts, whose zero convolutions let something through, for one batch of two."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trainer.objective.named_parameters():
        if ".controlnet_" in name or ".up." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    batch = collate([trainer.samples[position] for position in range(2)])
    batch["timestep"] = torch.tensor([1, 500])  # the first one's picture is clean enough for the identity loss
    losses = trainer.objective(batch)
    losses["loss"].backward()
    assert losses["identity"] > 0
    return {name: parameter.grad for name, parameter in trainer.objective.named_parameters()}


@pytest.mark.slow
class TestTraining:
    @pytest.mark.parametrize("rank", [None, 2])
    def test_gradients_are_those_of_rounded_weights(self, base, faces, tmp_path, monkeypatch, rank):
        def rounded(config):
            pipeline = load_pipeline(config)
            for name, module in pipeline.unet.named_modules():
                if name != "conv_in" and "norm" not in name and isinstance(module, (nn.Linear, nn.Conv2d)):
                    module.weight.data = module.weight.data.to(torch.float8_e4m3fn).float()
            return pipeline

        def found(changes):
            changes = {"adapter": {"ffrnet_rank": rank}, **changes}
            tiny_training.reset_accelerate()
            return gradients(Trainer(tiny_training.config(base, faces, tmp_path, **changes)))

        stored, plain = found(FLOAT8), found({})
        monkeypatch.setattr(trainer_module, "load_pipeline", rounded)
        expected = found({})
        assert any(".ffrnet." in name for name in expected) and any(".projections." in name for name in expected)
        for name, gradient in expected.items():
            assert torch.allclose(stored[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item()), name
        error, rounding = (
            sum((other[name] - expected[name]).square().sum().item() for name in expected) ** 0.5
            for other in (stored, plain)
        )
        assert rounding > 1e3 * error  # what rounding does is not lost in the tolerance

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_a_resumed_run_ends_with_the_same_bits(self, base, faces, tmp_path, precision):
        changes = {
            **FLOAT8, "steps": 2, "batch_size": 1, "checkpoint_every": 1, "adapter": {"ffrnet_rank": 2},
            "mixed_precision": precision, "data": {"validation": [str(faces)]}, "validation": {"inference_steps": 1},
        }  # fmt: skip
        once = train(tiny_training.config(base, faces, tmp_path / "once", **changes))
        assert 0 < once.results["validation/mse"] < 3 and (tmp_path / "once/validation/step-0000002.png").is_file()
        (tmp_path / "twice").mkdir()
        shutil.copytree(tmp_path / "once/checkpoint-1", tmp_path / "twice/checkpoint-1")
        train(tiny_training.config(base, faces, tmp_path / "twice", **changes))
        names = ("checkpoint-1", "checkpoint-2")
        before, after = (load_file(tmp_path / "once" / name / "model.safetensors") for name in names)
        assert_same(after, load_file(tmp_path / "twice/checkpoint-2/model.safetensors"))
        assert not torch.equal(before["parts.mixer.face_proj.weight"], after["parts.mixer.face_proj.weight"])

    def test_a_base_in_another_dtype_than_the_small_ffrnet(self, base, faces, tmp_path):
        """Without autocast, layers that are shared must bring their inputs into their own dtype."""
        changes = {"base": {**FLOAT8["base"], "dtype": "bfloat16"}, "gradient_checkpointing": True}
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=1, adapter={"ffrnet_rank": 2}, **changes))
        assert trainer.pipeline.unet.dtype == torch.bfloat16 and trainer.progress.skipped == 0


def test_weights_take_a_byte_each_and_are_rounded_once():
    net = nn.ModuleDict({"conv_in": nn.Conv2d(4, 8, 3), "norm": nn.Linear(8, 8), "conv": nn.Conv2d(8, 8, 3)})
    weights = {name: layer.weight.detach().clone() for name, layer in net.items()}
    store_weights(net, torch.float8_e4m3fn)
    stored = {name: parameter for name, parameter in net.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    assert [parameter.nbytes for parameter in stored.values()] == [8 * 8 * 9]
    assert not any(parameter.requires_grad for parameter in stored.values())
    for name in ("conv_in", "norm"):
        assert torch.equal(net[name].weight, weights[name])
    error = (net["conv"].weight - weights["conv"]).abs() / weights["conv"].abs().clamp(min=2**-6)
    assert net["conv"].weight.dtype == torch.float32 and 0 < error.max() <= 2**-4  # three bits behind the point


def test_weights_that_are_too_large_are_refused():
    net = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(net[0].weight, 449)
    with pytest.raises(InputError, match="weights of 0 go beyond 448") as error:
        store_weights(net, torch.float8_e4m3fn)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_checkpointing": False}, "only with gradient_checkpointing"),
        ({"base": {**FLOAT8["base"], "compile": True}}, "base: storage_dtype and compile do not go together"),
        ({"base": {"storage_dtype": "float8"}}, "base.storage_dtype"),
    ],
)
def test_what_does_not_go_together(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        tiny_training.config(tmp_path, tmp_path, tmp_path, **{**FLOAT8, **changes})
    assert "\n" not in str(error.value)
