"""Signatures name every argument, the stock pipeline's and ours: tools and notebooks read them."""

import inspect
import typing
from collections.abc import Mapping

import diffusers
import pytest

import facesnap_diffusers


NAMES = [
    prefix + suffix
    for prefix in ("StableDiffusionControlNet", "StableDiffusionXLControlNet")
    for suffix in ("Pipeline", "Img2ImgPipeline", "InpaintPipeline")
]
OURS = {
    *("face_image", "identity", "face_index", "pose_image", "pose", "expression", "face_box", "landmarks", "people"),
    *("identity_scale", "landmark_scale", "facesnap_schedule"),
}


def of_ours(stock_name: str) -> type:
    return getattr(facesnap_diffusers, stock_name.replace("StableDiffusion", "FaceSnap").replace("ControlNet", ""))


@pytest.mark.parametrize("stock_name", NAMES)
@pytest.mark.parametrize("method", ["__call__", "encode_prompt"])
def test_every_argument_has_its_name(stock_name, method):
    stock = inspect.signature(getattr(getattr(diffusers, stock_name), method)).parameters
    own = inspect.signature(getattr(of_ours(stock_name), method)).parameters
    stock = {name: parameter for name, parameter in stock.items() if parameter.kind is not parameter.VAR_KEYWORD}
    plain = inspect.signature(getattr(of_ours(stock_name)._plain_class, method)).parameters.values()
    without_face = {parameter.name for parameter in plain if parameter.kind is not parameter.VAR_KEYWORD}
    assert set(own) == set(stock) | without_face | (OURS if method == "__call__" else set())
    assert [name for name in own if name in stock] == list(stock)
    for name, parameter in stock.items():
        assert (own[name].kind, own[name].default) == (parameter.kind, parameter.default), name
    documented = getattr(of_ours(stock_name), method).__doc__
    assert method == "encode_prompt" or all(f"{name} (" in documented for name in OURS)
    assert documented.endswith(f"All other arguments are described in diffusers, at `{stock_name}.{method}`.")


@pytest.mark.parametrize("stock_name", NAMES)
@pytest.mark.parametrize("method", ["__call__", "encode_prompt"])
def test_every_type_is_known(stock_name, method):
    """`typing.get_type_hints` resolves the stock pipeline's annotations, ours and that of what is returned."""
    stock = typing.get_type_hints(getattr(getattr(diffusers, stock_name), method))
    own = getattr(of_ours(stock_name), method)
    hints = typing.get_type_hints(own)
    named = {name: hint for name, hint in stock.items() if name not in ("return", "prompt", "kwargs")}
    assert named and {name: hints[name] for name in named} == named
    if method == "__call__":
        assert hints.keys() > OURS and hints["identity_scale"] == float | Mapping[str, float] | None
    assert "return" in hints and inspect.signature(own).return_annotation is not inspect.Signature.empty
