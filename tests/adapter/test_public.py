"""The table of public adapters, on a Hub that serves their files in the public layouts."""

import io
import json
import logging
from pathlib import Path

import pytest
import third_party
import tiny
import torch
from command_line import command
from safetensors.torch import save

from facesnap_diffusers import AdapterError, FaceSnapPipeline, load_nano_pipeline
from facesnap_diffusers.adapter.public import DEFAULT_ADAPTERS, PUBLIC_ADAPTERS
from facesnap_diffusers.interop.conversion import FACEID_PLUS_IMAGE_ENCODER


pytestmark = pytest.mark.slow


IDS = [f"{adapter.repo}/{adapter.file}" for adapter in PUBLIC_ADAPTERS]
WIDTHS = {"sd1": 768, "sd2": 1024, "sdxl": 2048}


def pipeline(family):
    """A pipeline whose UNet is tiny and of a family's width."""
    base = tiny.xl_pipeline() if family == "sdxl" else tiny.sd_pipeline()
    config = {**base.unet.config, "cross_attention_dim": WIDTHS[family]}
    base.register_modules(unet=type(base.unet).from_config(config).eval())
    return tiny.facesnap(base)


@pytest.fixture(scope="module")
def pipelines():
    return {family: pipeline(family) for family in WIDTHS}


def publish(hub, adapter, unet, tmp_path):
    """The repository of a line of the table, with the image encoder that its file may need."""
    name = Path(adapter.file).stem
    content = third_party.VARIANTS.get(name.replace("-v11", ""), third_party.instantid)(unet)
    if adapter.file.endswith(".bin"):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getvalue()
    else:
        data = save(third_party.flat(content))
    hub.add_commit(adapter.repo, {adapter.file: data})
    if adapter.controlnet is not None:
        third_party.instantid_controlnet(unet).save_pretrained(tmp_path / "net")
        files = {f"{adapter.controlnet}/{path.name}": path.read_bytes() for path in (tmp_path / "net").iterdir()}
        hub.add_commit(adapter.repo, files)
    tiny.image_encoder().save_pretrained(tmp_path / "clip")
    hub.add_folder(FACEID_PLUS_IMAGE_ENCODER, tmp_path / "clip")


@pytest.mark.parametrize("adapter", PUBLIC_ADAPTERS, ids=IDS)
def test_every_line_loads_by_its_name_in_any_case(adapter, pipelines, hub, tmp_path):
    pipe = pipelines[adapter.family]
    publish(hub, adapter, pipe.unet, tmp_path)
    weight_name = None if adapter.default else Path(adapter.file).stem.upper()
    pipe.load_facesnap_adapter(adapter.repo.swapcase(), weight_name=weight_name, cache_dir=str(tmp_path / "cache"))
    config = pipe.facesnap_config
    assert config.parts == ["mixer", "identity_attention", *(["ffrnet"] if adapter.controlnet else [])]
    assert (config.base_family, config.license) == (adapter.family, adapter.license)
    assert pipe.facesnap_scale == {"identity_scale": 1.0, "landmark_scale": 1.0, **adapter.scales}
    if adapter.face_encoder_id is None:
        assert config.face_embed_dim is None
    else:
        assert config.face_encoder_id == adapter.face_encoder_id
    assert hub.sent[f"/{adapter.repo}/resolve/main/{adapter.file}"] > 0


@pytest.mark.parametrize("adapter", PUBLIC_ADAPTERS, ids=IDS)
def test_every_line_is_refused_on_another_family_before_its_first_byte(adapter, pipelines, hub, tmp_path):
    hub.add_commit(adapter.repo, {adapter.file: b"weights", "ControlNetModel/config.json": b"{}"})
    for family, pipe in pipelines.items():
        if family == adapter.family:
            continue
        with pytest.raises(
            AdapterError, match=f"made for base models of family {adapter.family}.*this one is of"
        ) as caught:
            pipe.load_facesnap_adapter(
                adapter.repo, weight_name=Path(adapter.file).name, cache_dir=str(tmp_path / "cache")
            )
        assert "\n" not in str(caught.value) and "shape" not in str(caught.value)
        if not any(line.repo == adapter.repo and line.family == family for line in PUBLIC_ADAPTERS):
            with pytest.raises(AdapterError, match="made for base models of family"):  # by the name alone
                pipe.load_facesnap_adapter(adapter.repo.swapcase(), cache_dir=str(tmp_path / "cache"))
    assert sum(hub.sent.values()) == 0


def test_an_adapter_of_our_own_is_refused_before_its_weights(hub, tmp_path, pipelines):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "ours")
    hub.add_folder("somebody/ours", tmp_path / "ours")
    with pytest.raises(AdapterError, match="made for base models of family custom-32, this one is of sd1"):
        pipelines["sd1"].load_facesnap_adapter("somebody/ours", cache_dir=str(tmp_path / "cache"))
    config = (tmp_path / "ours" / "facesnap_config.json").stat().st_size
    assert sum(size for path, size in hub.sent.items() if "/resolve/" in path) == config


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_default_adapter_says_what_it_is(family, pipelines, hub, tmp_path, caplog):
    pipe = pipelines[family]
    adapter = next(line for line in PUBLIC_ADAPTERS if line.repo == DEFAULT_ADAPTERS[family] and line.family == family)
    publish(hub, adapter, pipe.unet, tmp_path)
    with caplog.at_level(logging.WARNING, logger="facesnap_diffusers"):
        pipe.load_facesnap_adapter(cache_dir=str(tmp_path / "cache"))
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("facesnap_diffusers")]
    assert adapter.repo in line and f"by {adapter.authors} (" in line and "it is not a FaceSnap adapter" in line
    assert adapter.terms in line


def test_there_is_no_public_adapter_for_stable_diffusion_2(pipelines):
    with pytest.raises(AdapterError, match="no public adapter for base models of family sd2.*h94/IP-Adapter-FaceID"):
        pipelines["sd2"].load_facesnap_adapter()


def test_on_the_nano_model_the_default_is_what_ships(caplog):
    shipped = load_nano_pipeline()
    pipe = FaceSnapPipeline.from_pipe(shipped)
    pipe.unload_facesnap_adapter()
    pipe.load_facesnap_adapter()
    assert torch.equal(pipe.mixer.queries, shipped.mixer.queries)
    assert not [record for record in caplog.records if record.name.startswith("facesnap_diffusers")]


def test_recommended_scales_hold_until_others_are_set_and_survive(hub, tmp_path, pipelines):
    """Saved, shown, and back; a caller's own scales go before."""
    pipe = tiny.facesnap(tiny.xl_pipeline())
    checkpoint, net = third_party.instantid(pipe.unet), third_party.instantid_controlnet(pipe.unet)
    pipe.load_facesnap_adapter(checkpoint, controlnet=net)
    recommended = {"identity_scale": 0.8, "landmark_scale": 0.8}
    assert pipe.facesnap_scale == recommended
    pipe.set_facesnap_scale(landmark_scale=0.3)
    assert pipe.facesnap_scale == {"identity_scale": 0.8, "landmark_scale": 0.3}
    pipe.save_facesnap_adapter(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "facesnap_config.json").read_text())["recommended_scales"] == recommended
    shown = command("info", tmp_path / "ours").output
    assert "identity 0.8, landmarks 0.8" in " ".join(shown.split())
    pipe.load_facesnap_adapter(tmp_path / "ours")
    assert pipe.facesnap_scale == recommended


def test_info_shows_the_table():
    output = command("info", "--public").output
    for adapter in PUBLIC_ADAPTERS:
        assert adapter.repo in output and Path(adapter.file).name in output


def test_the_docs_have_the_table():
    text = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")
    ]
    assert rows == [
        [
            adapter.repo,
            f"{Path(adapter.file).name}{'` *' if adapter.default else ''}",
            adapter.family,
            adapter.face_encoder_id or "none",
            " / ".join(f"{scale:g}" for scale in adapter.scales.values()),
            adapter.terms,
        ]
        for adapter in PUBLIC_ADAPTERS
    ]
