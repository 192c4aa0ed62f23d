"""A UNet compiled as one graph: nothing is compiled again when scale, person or number of steps change."""

import pytest
import third_party
import tiny
import torch
from torch._dynamo.utils import counters

from facesnap_diffusers import Person


pytestmark = pytest.mark.slow


CALL = {"height": 64, "width": 64, "output_type": "pt"}
BOXES = ((0.05, 0.2, 0.4, 0.7), (0.6, 0.25, 0.95, 0.75))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(unet):
    # the graph is what is asked for here; the backend makes no difference to it
    return torch.compile(unet, fullgraph=True, backend="aot_eager")


def generate(pipe, who, scale=1.0, steps=2, **kwargs):
    pipe.set_facesnap_scale(identity_scale=scale)
    person = {"identity": who}
    if isinstance(who, list):
        person = {"people": [Person(each, box) for each, box in zip(who, BOXES, strict=True)]}
    return pipe("a cat", generator=tiny.seeded(), num_inference_steps=steps, **person, **CALL, **kwargs).images


def check_no_recompilation(pipe, people, scales):
    """The images of the compiled UNet are those of the same UNet as it is."""
    plain = pipe.unet
    cases = [(who, scale, steps) for who, scale, steps in zip(people * 2, scales, (2, 3, 1, 2), strict=True)]
    expected = [generate(pipe, *case) for case in cases]
    pipe.unet = compiled(plain)
    first = generate(pipe, *cases[0])
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        images = [generate(pipe, *case) for case in cases]
    assert counters["stats"]["unique_graphs"] == 0
    for image, same in zip([first, *images], [expected[0], *expected], strict=True):
        torch.testing.assert_close(image, same, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-4


@pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline])
def test_with_a_face(make):
    pipe = tiny.facesnap(make())
    tiny.add_adapter(pipe)
    check_no_recompilation(pipe, [tiny.identity(1), tiny.identity(2)], [1.0, 0.3, 0.8, 2])


def test_with_scales_of_layers():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    scales = [{"mid_block": a, "up_blocks": b} for a, b in ((1.0, 0.5), (0.3, 0.3), (0.2, 0.9), (1, 2))]
    check_no_recompilation(pipe, [tiny.identity(1), tiny.identity(2)], scales)


def test_with_two_people():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    people = [[tiny.identity(1), tiny.identity(2)], [tiny.identity(3), tiny.identity(4)]]
    check_no_recompilation(pipe, people, [1.0, 0.3, 0.8, 2.0])


def test_with_the_lora_of_face_id():
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(third_party.faceid(base.unet))
    people = [third_party.faceid_person(seed=1), third_party.faceid_person(seed=2)]
    check_no_recompilation(pipe, people, [1.0, 0.3, 0.8, 2.0])


def test_an_adapter_may_come_after_compiling(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path)
    expected = generate(pipe, tiny.identity())
    plain = pipe("a cat", generator=tiny.seeded(), num_inference_steps=2, **CALL).images

    late = tiny.facesnap(tiny.sd_pipeline())
    late.unet = compiled(late.unet)
    same = late("a cat", generator=tiny.seeded(), num_inference_steps=2, **CALL).images
    torch.testing.assert_close(same, plain, atol=1e-4, rtol=0)
    late.load_facesnap_adapter(tmp_path)
    torch.testing.assert_close(generate(late, tiny.identity()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_fused_projections_make_the_same_image(lora_rank):
    base = tiny.sd_pipeline()
    pipe = tiny.facesnap(base)
    pipe.load_facesnap_adapter(third_party.faceid(base.unet, lora_rank=lora_rank))
    who = third_party.faceid_person()
    expected = generate(pipe, who, 0.7)
    pipe.unet.fuse_qkv_projections()
    tiny.assert_same_image(generate(pipe, who, 0.7), expected, atol=1e-5)
    pipe.unet.unfuse_qkv_projections()
    tiny.assert_same_image(generate(pipe, who, 0.7), expected, atol=1e-5)
