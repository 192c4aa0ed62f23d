"""What this package takes from the inside of diffusers, transformers and torch is there and does what it did."""

import ast
import functools
import inspect
import json
from importlib.metadata import version
from pathlib import Path

import diffusers
import pytest
import third_party
import tiny
import torch
from accelerate import cpu_offload_with_hook
from diffusers.models.embeddings import IPAdapterFaceIDImageProjection

import facesnap_diffusers
from facesnap_diffusers import InputError, _upstream


SOURCES = Path(facesnap_diffusers.__file__).parent
LIBRARIES = ("diffusers", "transformers", "accelerate", "peft", "huggingface_hub", "torch")
# how diffusers and torch have a subclass say or do these
IN_PLACE = {"_optional_components", "_exclude_from_cpu_offload", "_apply", "_modules"}


def without_offloading():
    pipe = tiny.sd_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    with _upstream.without_offloading(pipe) as offloaded:
        assert offloaded
        assert not hasattr(pipe.unet, "_hf_hook")
    assert hasattr(pipe.unet, "_hf_hook")
    pipe.remove_all_hooks()
    with _upstream.without_offloading(pipe) as offloaded:
        assert not offloaded


def execution_device():
    assert _upstream.execution_device(tiny.sd_pipeline()) == torch.device("cpu")


def is_model_offloaded():
    pipe = tiny.sd_pipeline()
    assert not _upstream.is_model_offloaded(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert _upstream.is_model_offloaded(pipe)


def convert_image_projection():
    checkpoint = third_party.faceid(tiny.sd_unet())
    projection = _upstream.convert_image_projection(checkpoint["image_proj"])
    assert isinstance(projection, IPAdapterFaceIDImageProjection)
    assert torch.equal(projection.norm.weight, checkpoint["image_proj"]["norm.weight"])


def saved_class_name():
    config = json.loads(tiny.sd_unet().to_json_string())
    assert _upstream.saved_class_name(config) == "UNet2DConditionModel"


def callback_tensor_inputs():
    assert _upstream.callback_tensor_inputs(tiny.sd_pipeline())[0] == "latents"


def drop_source():
    config = tiny.image_encoder().config.to_dict() | {"_name_or_path": "folder/of/mine/model"}
    assert _upstream.drop_source(config)
    assert "_name_or_path" not in config
    assert not _upstream.drop_source(config)


def supports_gradient_checkpointing():
    unet = tiny.sd_unet()
    assert _upstream.supports_gradient_checkpointing(unet)
    unet.enable_gradient_checkpointing()
    assert not _upstream.supports_gradient_checkpointing(torch.nn.Linear(1, 1))


def uncompiled():
    unet = tiny.sd_unet()
    assert _upstream.uncompiled(unet) is unet
    assert _upstream.uncompiled(torch.compile(unet, backend="eager")) is unet


def onload_model():
    unet = tiny.sd_unet()
    _upstream.onload_model(unet, torch.device("cpu"))
    seen = []
    _, hook = cpu_offload_with_hook(unet, torch.device("cpu"))
    hook.hook.pre_forward = lambda module, *args: seen.append(module)
    _upstream.onload_model(unet, torch.device("meta"))
    assert seen == [unet]


def tensor_version():
    tensor = torch.zeros(2)
    before = _upstream.tensor_version(tensor)
    tensor[:1].add_(1)
    assert _upstream.tensor_version(tensor) != before
    with torch.inference_mode():
        assert _upstream.tensor_version(torch.zeros(2)) is None


def cast_dtype():
    unet = tiny.sd_unet()
    assert _upstream.cast_dtype(unet.conv_out) is None
    unet.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    layer = unet.down_blocks[0].resnets[0].conv1
    assert _upstream.cast_dtype(layer) == torch.bfloat16


def hook_of():
    unet = tiny.sd_unet()
    layer = unet.down_blocks[0].resnets[0].conv1
    assert _upstream.hook_of(layer, "layerwise_casting") is None
    unet.enable_layerwise_casting(torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert _upstream.hook_of(layer, "layerwise_casting").storage_dtype == torch.float8_e4m3fn
    assert _upstream.hook_of(layer, "group_offloading") is None


def offloading_group():
    unet = tiny.sd_unet()
    assert _upstream.offloading_group(unet.down_blocks[0]) is None
    unet.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    group = _upstream.offloading_group(unet.down_blocks[0])
    assert callable(group.onload_)
    assert callable(group.offload_)


def register_in_diffusers():
    class NewInDiffusers:
        pass

    try:
        assert _upstream.register_in_diffusers(NewInDiffusers) is NewInDiffusers
        assert diffusers.NewInDiffusers is NewInDiffusers
    finally:
        del diffusers.NewInDiffusers


def progress_bar_config():
    pipe = tiny.sd_pipeline()
    pipe.set_progress_bar_config(disable=True, leave=False)
    assert _upstream.progress_bar_config(pipe) == {"disable": True, "leave": False}


def with_text_model():
    pipe = tiny.sd_pipeline()
    assert not hasattr(pipe.text_encoder, "text_model"), "is not needed any more: transformers has the attribute again"
    pipe.text_encoder = _upstream.with_text_model(pipe.text_encoder)
    embeds, _ = pipe.encode_prompt("a cat", "cpu", 1, False, clip_skip=1)
    assert embeds.shape == (1, 77, 32)


def install_capturing_hooks():
    text_encoder = tiny.sd_pipeline().text_encoder
    for _ in range(2):
        _upstream.install_capturing_hooks(text_encoder)
    states = text_encoder(torch.tensor([[0, 3, 1]]), output_hidden_states=True).hidden_states
    assert len(states) == text_encoder.config.num_hidden_layers + 1


def resolve_dtype():
    assert _upstream.resolve_dtype(torch.float16, None) == torch.float16
    assert _upstream.resolve_dtype(None, torch.float16) == torch.float16
    with pytest.raises(InputError, match="both given"):
        _upstream.resolve_dtype(torch.float16, torch.float32)


def own_tokenizer():
    shared = tiny.tokenizer()
    own = _upstream.own_tokenizer(shared)
    assert own("a cat").input_ids == shared("a cat").input_ids
    assert len(own("a cat", padding="max_length", max_length=30).input_ids) == 30
    assert own._tokenizer.padding is not None
    assert shared._tokenizer.padding is None


@pytest.mark.parametrize(
    "name", [node.name for node in ast.parse(Path(_upstream.__file__).read_text()).body if hasattr(node, "args")]
)
def test_private_names_do_what_they_did(name):
    """The function of `_upstream.py` in the id of a failure is what upstream broke."""
    try:
        globals()[name]()
    except Exception as error:
        versions = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
        pytest.fail(f"facesnap_diffusers._upstream.{name} does not work with {versions}: {error!r}")


def private_names(tree):
    """Private names that code imports, reads or sets as attributes, and those that stand in it as strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            yield node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("_"):
            yield node.value


def set_by_calls(cls):
    """The private attributes that the code of a class of diffusers, and of its base classes, sets on its objects."""
    files = {inspect.getfile(base) for base in cls.__mro__ if base.__module__.startswith("diffusers.")}
    for file in files:
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if is_set and node.attr.startswith("_") and ast.unparse(node.value) == "self":
                yield node.attr


@functools.cache
def upstream_names():
    """The private names of pipelines, of their UNet and of compiled modules, and those in the files that they write."""
    pipelines = [getattr(facesnap_diffusers, name) for name in dir(facesnap_diffusers) if name.endswith("Pipeline")]
    stock = {
        base for cls in pipelines for base in getattr(cls, "__mro__", ()) if base.__module__.startswith("diffusers")
    }
    stock |= {type(tiny.sd_pipeline()), type(tiny.xl_pipeline())}
    names = {name for cls in stock for name in (*vars(cls), *set_by_calls(cls))}
    names |= set(dir(tiny.sd_unet())) | set(dir(torch.compile(torch.nn.Linear(1, 1), backend="eager")))
    return names | {"_hf_hook", "_diffusers_hook", "_class_name", "_diffusers_version", "_name_or_path"}


def test_private_names_of_upstream_are_in_one_place():
    """Every other private name that the package uses is one that it defines itself."""
    upstream = {name for name in upstream_names() if name.startswith("_") and not name.endswith("__")}
    assert upstream >= {*_upstream.SHOWN_AFTER_A_CALL, "_all_hooks", "_offload_device", "_progress_bar_config"}
    strays = {
        f"{path.relative_to(SOURCES)}: {name}"
        for path in SOURCES.rglob("*.py")
        if path.name != "_upstream.py"
        for name in private_names(ast.parse(path.read_text(encoding="utf-8")))
        if name in upstream - IN_PLACE
    }
    assert not strays


def test_a_stock_call_still_writes_down_what_it_shows():
    pipe = tiny.sd_pipeline()
    tiny.generate(pipe, num_inference_steps=1, clip_skip=None)
    assert set(vars(pipe)) >= set(_upstream.SHOWN_AFTER_A_CALL)


@pytest.mark.parametrize(
    "code", ["pipe._interrupt = True", "names = ('_clip_skip',)", "config.get('_class_name')", "def _interrupt(): 1"]
)
def test_private_names_are_seen(code):
    assert set(private_names(ast.parse(code))) & upstream_names()
