"""The LoRA of the identity loss's samples: the same as a fused one for the samples, and nothing for all else."""

import copy

import pytest
import test_objective
import tiny
import tiny_training
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from tiny_lora import FILE, write_lora
from tiny_training import train

from facesnap_diffusers import FFRNet
from facesnap_diffusers.errors import InputError, MissingDependencyError
from facesnap_diffusers.training import sampling_lora
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.sampling_lora import unet_with_lora
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import IdentityLossConfig, LossConfig
from facesnap_diffusers.training.weight_storage import store_weights


pytestmark = pytest.mark.slow

ALL_SHOWN = {"identity": 0.0, "both": 0.0, "landmarks": 0.0}
SAMPLING = {"mode": "few_step", "every": 1, "steps": 2, "gradient_steps": 2}


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tiny.sd_pipeline(), tmp_path_factory.mktemp("lora"))


def fused(unet, folder):
    """A copy of a UNet whose weights have the LoRA in them, `W + up · down`, by its file."""
    unet, tensors = copy.deepcopy(unet), load_file(folder / FILE)
    names = {name.removeprefix("unet.").rsplit(".", 2)[0] for name in tensors}
    assert len(names) > 10 and len(tensors) == 2 * len(names)
    for name in names:
        down, up = (tensors[f"unet.{name}.lora_{part}.weight"].double() for part in ("A", "B"))
        weight = unet.get_submodule(name).weight
        weight.data += (up.flatten(1) @ down.flatten(1)).view(weight.shape).to(weight.dtype)
    return unet


def objective(lora=None, rank=None, stored=False, checkpointing=False):
    """In float64. With `stored`, the UNet's weights are in float8, and the one given besides has those rounded weights."""
    plain = test_objective.TestObjective.objective(**SAMPLING)
    pipe = plain.pipeline
    if rank is not None:
        torch.manual_seed(5)
        channels = pipe.ffrnet.config.conditioning_embedding_out_channels
        ffrnet = FFRNet.from_unet(pipe.unet, rank=rank, conditioning_embedding_out_channels=channels)
        pipe.register_modules(ffrnet=ffrnet)
        for parameter in pipe.ffrnet.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    if checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    rounded = copy.deepcopy(pipe.unet)
    if stored:
        for name, module in rounded.named_modules():
            if name != "conv_in" and "norm" not in name and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.weight.data = module.weight.data.to(torch.float8_e4m3fn).double()
        store_weights(pipe.unet, torch.float8_e4m3fn)
    config = IdentityLossConfig(weight=1.0, reference="photo", lora=None if lora is None else str(lora), **SAMPLING)
    parts = ["mixer", "ffrnet", "identity_attention"]
    return Objective(pipe, parts, LossConfig(), config, plain.recognizer), rounded


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("rank", [None, 2])
def test_samples_are_those_of_a_fused_lora(lora, rank, stored):
    """Which a small FFRNet, sharing the base's layers, does not see."""
    (ours, _), (plain, base) = objective(lora, rank, stored), objective(None, rank, stored)
    batch = test_objective.TestObjective.batch()
    noise = batch["start_noise"]
    with torch.no_grad():
        found = ours.sample(noise, ours.encode_conditions(batch))
        without = plain.sample(noise, plain.encode_conditions(batch))
        plain._frozen = (*plain._frozen[:2], fused(base, lora))
        expected = plain.sample(noise, plain.encode_conditions(batch))
    assert torch.allclose(found, expected, atol=1e-12) and (found - without).abs().max() > 0.1


def test_nothing_else_sees_it(lora):
    """Predictions, pictures, state dicts and random state are the same to the last bit."""
    (ours, _), (plain, _) = objective(lora), objective()
    batch = test_objective.TestObjective.batch()
    found, expected = ours(batch), plain(batch)
    assert torch.equal(found["mse"], expected["mse"]) and torch.equal(found["diffusion"], expected["diffusion"])
    assert found["identity"] != expected["identity"]
    found, expected = (one.prediction_error(batch) for one in (ours, plain))
    assert torch.equal(found, expected)
    pictures = [tiny.generate(one.pipeline.to(torch.float32), identity=tiny.identity()) for one in (ours, plain)]
    assert torch.equal(*pictures)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert ours.pipeline.unet.state_dict().keys() == plain.pipeline.unet.state_dict().keys()
    assert not hasattr(ours.pipeline.unet, "peft_config")
    assert sum(parameter.requires_grad for parameter in ours.sampling_unet.parameters()) == 0


def test_weights_are_shared_and_no_random_numbers_drawn(lora):
    pipe = tiny.sd_pipeline()
    before = torch.get_rng_state()
    twin = unet_with_lora(pipe, str(lora), FILE)
    assert torch.equal(torch.get_rng_state(), before)
    own = {id(parameter) for parameter in pipe.unet.parameters()}
    assert {name for name, parameter in twin.named_parameters() if id(parameter) not in own} == {
        name for name, _ in twin.named_parameters() if ".lora_" in name
    }


def test_gradient_checkpointing_computes_with_it_again(lora):
    """The backward pass comes when the samples are long taken."""
    batch, found = test_objective.TestObjective.batch(), []
    for checkpointing in (False, True):
        one, _ = objective(lora, checkpointing=checkpointing)
        identity = one._identity_of_sample(one.sample(batch["start_noise"], one.encode_conditions(batch)), batch)[0]
        one(batch)  # in between, the denoising branch computes without it
        found.append(torch.autograd.grad(identity, list(one.parameters()), allow_unused=True))
    gradients = [(first, second) for first, second in zip(*found) if first is not None]
    assert max(first.abs().max() for first, _ in gradients) > 1e-4
    for first, second in gradients:
        assert torch.allclose(first, second, atol=1e-12)


def test_formats_and_sdxl(tmp_path):
    """A file in kohya's names, with alpha half the rank, on SDXL."""
    pipe = tiny.xl_pipeline()
    tensors = load_file(write_lora(pipe, tmp_path) / FILE)
    kohya = {}
    for name, tensor in tensors.items():
        layer, part = name.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
        key = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{key}.lora_{'down' if part == 'lora_A' else 'up'}.weight"] = tensor.contiguous()
        kohya[f"{key}.alpha"] = torch.tensor(1.0)
    kohya = {name: tensor for name, tensor in kohya.items() if "conv_in" not in name}
    save_file(kohya, tmp_path / "kohya.safetensors")
    twin = unet_with_lora(pipe, str(tmp_path / "kohya.safetensors"))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    states = torch.randn(1, 3, 64)
    difference = twin.get_submodule(layer)(states) - pipe.unet.get_submodule(layer)(states)
    down, up = (tensors[f"unet.{layer}.lora_{part}.weight"] for part in ("A", "B"))
    assert torch.allclose(difference, 0.5 * states @ down.T @ up.T, atol=1e-5)


class TestRefused:
    def message(self, *arguments):
        with pytest.raises(InputError, match="identity_loss.lora .* could not be loaded") as error:
            unet_with_lora(*arguments)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_of_another_family(self, tmp_path):
        self.message(tiny.sd_pipeline(), str(write_lora(tiny.xl_pipeline(), tmp_path)))

    def test_layers_that_the_unet_does_not_have(self, lora, tmp_path):
        tensors = load_file(lora / FILE)
        odd = {name.replace("mid_block", "mid_block.odd"): tensor for name, tensor in tensors.items()}
        save_file(odd, tmp_path / "odd.safetensors")
        assert "another UNet" in self.message(tiny.sd_pipeline(), str(tmp_path / "odd.safetensors"))

    def test_of_a_text_encoder_too(self, tmp_path):
        pipe = tiny.sd_pipeline()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), pipe.text_encoder)
        write_lora(pipe, tmp_path, text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder))
        assert "text_encoder" in self.message(tiny.sd_pipeline(), str(tmp_path))

    def test_files(self, tmp_path):
        (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
        self.message(tiny.sd_pipeline(), str(tmp_path / "damaged.safetensors"))
        assert "nowhere/lora/x.safetensors" in self.message(tiny.sd_pipeline(), "nowhere/lora", "x.safetensors")

    def test_before_the_base_is_loaded(self, faces, tmp_path):
        changes = {"identity_loss": {**SAMPLING, "lora": str(tmp_path / "lora")}}
        with pytest.raises(InputError, match="identity_loss.lora .* is no file or folder; name one, or a Hub repo"):
            Trainer(tiny_training.config(tmp_path / "no-base", faces, tmp_path / "run", **changes))

    def test_without_peft(self, lora, monkeypatch):
        monkeypatch.setattr(sampling_lora, "is_peft_available", lambda: False)
        with pytest.raises(MissingDependencyError, match=r'pip install "facesnap-diffusers\[lora\]"'):
            unet_with_lora(tiny.sd_pipeline(), str(lora))


class TestRuns:
    @pytest.mark.parametrize(
        "changes",
        [
            {"adapter": {"ffrnet_rank": 2}, "identity_loss": {"resolution": 16, "prompt": "portrait"}},
            {
                "base": {"storage_dtype": "float8_e4m3fn"},
                "gradient_checkpointing": True,
                "mixed_precision": "bf16",
                "batch_size": 1,
                "identity_loss": {"steps": 1, "gradient_steps": 1},
            },
        ],
        ids=["small", "float8"],
    )
    def test_run(self, base, faces, tmp_path, lora, changes):
        identity_loss = {**SAMPLING, "lora": str(lora), **changes.get("identity_loss", {})}
        changes = {**changes, "identity_loss": identity_loss, "data": {"validation": [str(faces)]}}
        config = tiny_training.config(base, faces, tmp_path, steps=1, dropout=ALL_SHOWN, **changes)
        config.validation.images = 0
        trainer = train(config)
        assert 0 < trainer.results["identity"] < 2 and trainer.progress.skipped == 0
        saved = list(tmp_path.rglob("*.safetensors"))
        assert len(saved) > 3 and not any("lora_A" in name for path in saved for name in load_file(path))

    def test_a_compiled_base(self, base, faces, tmp_path, lora, monkeypatch):
        """Both are compiled."""
        compiled = []
        monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", lambda unet: compiled.append(unet))
        changes = {"base": {"compile": True}, "identity_loss": {**SAMPLING, "lora": str(lora)}}
        trainer = Trainer(tiny_training.config(base, faces, tmp_path, **changes))
        assert len(compiled) == 2
        assert compiled[0] is trainer.pipeline.unet and compiled[1] is trainer.objective.sampling_unet


def single(batch):
    """A batch in float32."""
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def test_samples_of_a_compiled_base(lora):
    """The blocks of the base's UNet are compiled before the LoRA is loaded, those of the other after it."""
    noise, found = test_objective.TestObjective.batch(1)["start_noise"], []
    for on in (False, True):
        torch.manual_seed(0)
        pipe = tiny.with_adapter(tiny.sd_pipeline())
        if on:
            pipe.unet.compile_repeated_blocks(backend="eager")
        config = IdentityLossConfig(**SAMPLING, lora=str(lora))
        one = Objective(pipe, ["mixer"], LossConfig(extra="math:sqrt", extra_samples=True), config)
        if on:
            one.sampling_unet.compile_repeated_blocks(backend="eager")
        with torch.no_grad():
            found.append(
                one.sample(noise.float(), one.encode_conditions(single(test_objective.TestObjective.batch(1))))
            )
    assert torch.allclose(*found, atol=1e-4)
