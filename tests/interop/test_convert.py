"""Other people's checkpoints to our format, our adapters to a stock IP-Adapter, and back to the same images."""

import pytest
import third_party
import tiny
import torch
from command_line import command
from third_party import VARIANTS

from facesnap_diffusers import AdapterError, FaceSnapConfig, InputError
from facesnap_diffusers.base_models import empty_unet
from facesnap_diffusers.interop import export_ip_adapter, ip_adapter_image_embeds


pytestmark = pytest.mark.slow


CALL = {**tiny.CALL, "num_inference_steps": 3, "guidance_scale": 5.0}
BASES = {"sd": tiny.sd_pipeline, "xl": tiny.xl_pipeline}


def generate(pipe, **kwargs):
    return tiny.generate(pipe, **CALL, **kwargs)


@pytest.mark.parametrize("name", [*VARIANTS, "ip-adapter"])
def test_convert_load_generate(name, tmp_path):
    base = tiny.xl_pipeline() if "sdxl" in name or name == "ip-adapter" else tiny.sd_pipeline()
    base.save_pretrained(tmp_path / "base")
    arguments = ["--base", tmp_path / "base"]
    encoder = {}
    make = VARIANTS.get(name, third_party.instantid)
    identity = third_party.person_for(name)
    if make in third_party.WITH_IMAGE_FEATURES:
        encoder = {"image_encoder": tiny.image_encoder()}
        tiny.image_encoder().save_pretrained(tmp_path / "clip")
        arguments += ["--image-encoder", tmp_path / "clip"]
    if name == "ip-adapter":
        identity = third_party.instantid_person()
        third_party.instantid_controlnet(base.unet).save_pretrained(tmp_path / "ControlNetModel")
    torch.save(make(base.unet), tmp_path / f"{name}.bin")

    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(tmp_path / f"{name}.bin", **encoder)
    original = generate(pipe, identity=identity)
    command("convert", tmp_path / f"{name}.bin", tmp_path / "ours", *arguments)
    assert not list((tmp_path / "ours").rglob("*.bin"))
    assert f"Converted from `{name}.bin`" in (tmp_path / "ours" / "README.md").read_text()
    pipe.load_facesnap_adapter(tmp_path / "ours", **encoder)
    tiny.assert_same_image(generate(pipe, identity=identity), original, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("family", BASES)
def test_export_to_stock_diffusers(family, suffix, tmp_path):
    stock = BASES[family]()
    plain = generate(stock)
    pipe = tiny.facesnap(stock)
    tiny.add_adapter(pipe)
    pipe.set_facesnap_scale(identity_scale=0.7, landmark_scale=0)
    original = generate(pipe, identity=tiny.identity())
    export_ip_adapter(pipe, tmp_path / "new" / f"facesnap{suffix}")
    embeds = ip_adapter_image_embeds(pipe, tiny.identity())

    folder = str(tmp_path / "new")
    stock.load_ip_adapter(folder, subfolder=None, weight_name=f"facesnap{suffix}", image_encoder_folder=None)
    stock.set_ip_adapter_scale(0.7)
    image = generate(stock, ip_adapter_image_embeds=[embeds])
    assert (image - plain).abs().max() > 1e-3
    tiny.assert_same_image(image, original, atol=1e-5)


@pytest.mark.parametrize("make", [third_party.faceid, third_party.instantid])
def test_export_of_an_imported_adapter(make, tmp_path):
    stock = tiny.sd_pipeline()
    pipe = tiny.facesnap(stock)
    pipe.load_facesnap_adapter(make(stock.unet), parts=["mixer", "identity_attention"])
    identity = third_party.faceid_person() if make is third_party.faceid else third_party.instantid_person()
    original = generate(pipe, identity=identity)
    export_ip_adapter(pipe, tmp_path / "exported.safetensors")
    embeds = ip_adapter_image_embeds(pipe, identity)
    stock.load_ip_adapter(str(tmp_path), subfolder=None, weight_name="exported.safetensors", image_encoder_folder=None)
    stock.set_ip_adapter_scale(pipe.facesnap_scale["identity_scale"])
    tiny.assert_same_image(generate(stock, ip_adapter_image_embeds=[embeds]), original, atol=1e-5)


def test_the_command_exports_the_same_file(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_pretrained(tmp_path / "base")
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    export_ip_adapter(pipe, tmp_path / "one.safetensors")
    command(
        "convert",
        tmp_path / "adapter",
        tmp_path / "two.safetensors",
        "--to",
        "ip-adapter",
        "--base",
        tmp_path / "base",
    )
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_errors_are_typed(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    with pytest.raises(AdapterError, match="export_ip_adapter needs"):
        export_ip_adapter(pipe, tmp_path / "x.safetensors")
    tiny.add_adapter(pipe)
    with pytest.raises(InputError, match="must end in"):
        export_ip_adapter(pipe, tmp_path / "x.pt")
    pipe.load_facesnap_adapter(
        third_party.faceid_plus(pipe.unet), faceid_plus_v2=False, image_encoder=tiny.image_encoder()
    )
    with pytest.raises(AdapterError, match="FaceID-Plus"):
        export_ip_adapter(pipe, tmp_path / "x.safetensors")
    torch.save(third_party.faceid(pipe.unet), tmp_path / "x.bin")
    with pytest.raises(InputError, match="--base"):
        command("convert", tmp_path / "x.bin", tmp_path / "out")
    with pytest.raises(InputError, match="unet/config.json"):
        command("convert", tmp_path / "x.bin", tmp_path / "out", "--base", tmp_path)
    base = tmp_path / "base"
    tiny.sd_pipeline().unet.save_pretrained(base / "unet")
    for options, reason in (
        (["--to", "ip-adapter", "--weight-name", "x"], "--weight-name has no effect: --to ip-adapter takes"),
        (["--to", "ip-adapter", "--controlnet", "x"], "--controlnet has no effect: --to ip-adapter takes"),
        (["--to", "ip-adapter", "--image-encoder", "x"], "--image-encoder has no effect: --to ip-adapter takes"),
        (["--base", base, "--image-encoder", "x"], "--image-encoder has no effect: .* without an image encoder"),
        (["--base", base, "--no-plus-v2"], r"--plus-v2\) has no effect: .* is not FaceID-Plus"),
        (["--base", base, "--structure-scale", 0.5], r"--structure-scale\) has no effect: .* is not FaceID-Plus"),
        (["--base", base, "--ffrnet-rank", 4, "--image-encoder", "x"], "--image-encoder has no effect: --ffrnet-rank"),
        (["--base", base, "--ffrnet-rank", 4, "--plus-v2"], "--plus-v2 has no effect: --ffrnet-rank"),
        (["--base", base, "--ffrnet-rank", 4, "--structure-scale", 1], "--structure-scale has no effect: --ffrnet"),
    ):
        with pytest.raises((InputError, AdapterError), match=reason):
            command("convert", tmp_path / "x.bin", tmp_path / "new" / "out", *options)
        assert not (tmp_path / "new" / "out").exists()
    with pytest.raises(InputError, match="choose facesnap"):
        command("convert", tmp_path / "x.bin", tmp_path / "out", "--to", "onnx")


def test_widths_say_the_family_in_full_size(tmp_path):
    """A checkpoint in the real shapes of SD 1.5."""
    shapes = third_party.faceid(empty_unet("sd1"), lora_rank=0)
    content = {k: {n: torch.zeros(t.shape, dtype=torch.float16) for n, t in v.items()} for k, v in shapes.items()}
    torch.save(content, tmp_path / "x.bin")
    command("convert", tmp_path / "x.bin", tmp_path / "out")
    config = FaceSnapConfig.load(tmp_path / "out")
    assert (config.base_family, config.num_tokens, config.parts) == ("sd1", 4, ["mixer", "identity_attention"])
