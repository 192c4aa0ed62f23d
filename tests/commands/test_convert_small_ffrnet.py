"""`facesnap convert --ffrnet-rank`: a small FFRNet of a full one, FaceSnap's or InstantID's."""

import pytest
import third_party
import tiny
import torch
from command_line import command

from facesnap_diffusers import InputError


CALL = {**tiny.CALL, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.xl_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["facesnap", "instantid"])
def test_at_full_rank_nothing_is_lost(kind, base, tmp_path):
    pipe = tiny.facesnap(tiny.xl_pipeline())
    if kind == "facesnap":
        tiny.add_adapter(pipe)
        pipe.save_facesnap_adapter(tmp_path / "full")
        identity = tiny.identity()
    else:
        (tmp_path / "full").mkdir()
        torch.save(third_party.instantid(pipe.unet), tmp_path / "full" / "ip-adapter.bin")
        third_party.instantid_controlnet(pipe.unet).save_pretrained(tmp_path / "full" / "ControlNetModel")
        pipe.load_facesnap_adapter(tmp_path / "full")
        identity = third_party.instantid_person()
    arguments = ("convert", tmp_path / "full", tmp_path / "small", "--base", base, "--ffrnet-rank")
    result = command(*arguments, 512)
    assert "is lost" in result.output
    assert "Converted from `full`" in (tmp_path / "small" / "README.md").read_text()
    small = tiny.facesnap(tiny.xl_pipeline())
    small.load_facesnap_adapter(tmp_path / "small")
    assert small.ffrnet.config.rank == 512
    expected = tiny.generate(pipe, identity=identity, **CALL)
    tiny.assert_same_image(tiny.generate(small, identity=identity, **CALL), expected, atol=1e-4)


def test_needs_the_weights_of_the_base(tmp_path):
    with pytest.raises(InputError, match="needs --base, a folder of the base model's weights"):
        command("convert", tmp_path, tmp_path / "small", "--ffrnet-rank", 4)
