"""Exports that are refused, and files that appear whole or not at all."""

import pytest
import tiny
import torch

from facesnap_diffusers import InputError
from facesnap_diffusers.interop import export_ip_adapter, ip_adapter_image_embeds


@pytest.fixture(scope="module")
def pipe():
    return tiny.with_adapter(tiny.sd_pipeline())


@pytest.mark.parametrize("identity", [[tiny.identity(), tiny.identity(4)], [], None, "me"])
def test_one_identity(pipe, identity):
    with pytest.raises(InputError, match="identity must be one FaceIdentity"):
        ip_adapter_image_embeds(pipe, identity)


def test_what_is_no_pipeline(tmp_path):
    for call in (
        lambda: export_ip_adapter(tiny.sd_pipeline(), tmp_path / "x.bin"),
        lambda: ip_adapter_image_embeds(None, tiny.identity()),
    ):
        with pytest.raises(InputError, match="pipe must be a FaceSnap pipeline"):
            call()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_write_that_fails_leaves_what_was_there(pipe, suffix, tmp_path, monkeypatch):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")

    def full(content, file):
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("facesnap_diffusers.interop.export.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"could not be written \(No space left on device\)"):
        export_ip_adapter(pipe, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"old"
    with pytest.raises(InputError, match="could not be written"):
        export_ip_adapter(pipe, path / "below" / f"x{suffix}")
