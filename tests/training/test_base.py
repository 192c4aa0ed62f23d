"""The frozen base: a VAE of its own, compiled blocks."""

import pytest
import tiny
import tiny_training
import torch
from diffusers import UNet2DConditionModel
from tiny_training import train

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training.base import load_pipeline


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("named", [False, True])
def test_vae_by_name(faces, tmp_path, named):
    """SDXL's own VAE stays in float32; one that is named comes in the base's dtype, with its own weights."""
    pipe = tiny.xl_pipeline()
    pipe.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 1
    pipe.vae.save_pretrained(tmp_path / "vae")
    tiny.image_encoder().save_pretrained(tmp_path / "base/face_encoder")
    base = {"family": "sdxl", "dtype": "bfloat16", "vae": str(tmp_path / "vae") if named else None}
    pipeline = load_pipeline(tiny_training.config(tmp_path / "base", faces, tmp_path / "run", base=base))
    assert pipeline.unet.dtype == torch.bfloat16
    assert pipeline.vae.dtype == (torch.bfloat16 if named else torch.float32)
    assert pipeline.vae.decoder.conv_out.bias.float().mean() > 0.5 or not named
    assert not any(parameter.requires_grad for parameter in pipeline.vae.parameters())


def test_a_vae_that_is_not_there(base, faces, tmp_path):
    with pytest.raises(InputError, match="base.vae 'nowhere/vae' could not be loaded"):
        load_pipeline(tiny_training.config(base, faces, tmp_path, base={"vae": "nowhere/vae"}))


def test_a_compiled_base_trains_the_same(base, faces, tmp_path, monkeypatch):
    """Traced as on a GPU, with its backward pass, but without the code generator, which takes minutes."""
    compile_blocks, compiled = UNet2DConditionModel.compile_repeated_blocks, []

    def traced(unet):
        compiled.append(unet)
        compile_blocks(unet, backend="aot_eager")

    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", traced)
    weights = []
    for on in (False, True):
        config = tiny_training.config(base, faces, tmp_path / str(on), steps=2, base={"compile": on})
        trainer = train(config)
        weights.append({name: value.clone() for name, value in trainer.objective.named_parameters()})
    assert len(compiled) == 1
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name
