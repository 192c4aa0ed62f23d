"""Several people in one image."""

import pytest
import tiny
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from facesnap_diffusers import (
    FaceEncoderMismatchError,
    FaceIdentity,
    FaceSnapImg2ImgPipeline,
    HeadPose,
    InputError,
    Person,
)
from facesnap_diffusers.models.attention import CONTEXT_KEY, accept_contexts
from facesnap_diffusers.models.regions import RegionalContext, Regions


LEFT, RIGHT = (0.05, 0.2, 0.4, 0.7), (0.6, 0.25, 0.95, 0.75)
MIDDLE = (0.42, 0.05, 0.58, 0.3)


@pytest.fixture(scope="module")
def pipe():
    return tiny.with_adapter(tiny.sd_pipeline())


def generate(pipe, people=None, size=(64, 96), **kwargs):
    return tiny.generate(pipe, people=people, height=size[0], width=size[1], **kwargs)


def owners_of(regions, places):
    """Whose each place of a level is, `(people, places)`, bool."""
    return regions.masks(len(regions.boxes))[places].T


def attention_layers(pipe):
    for net in (pipe.unet, pipe.ffrnet):
        for name, module in net.named_modules():
            if name.endswith(".attn2"):
                yield net, name, module


@pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline])
@pytest.mark.parametrize("boxes", [(LEFT, RIGHT), (LEFT, MIDDLE, RIGHT)], ids=["two", "three"])
@pytest.mark.parametrize("size", [(32, 48), (15, 21)], ids=str)
def test_no_place_depends_on_the_tokens_of_another_person(make, boxes, size):
    """In every cross-attention of UNet and FFRNet; identities are alive in their own region."""
    pipe = tiny.with_adapter(make())
    regions, num_tokens = Regions(torch.tensor(boxes), *size), 5
    people, width = len(boxes), pipe.unet.config.cross_attention_dim
    torch.manual_seed(0)
    checked = 0
    accept_contexts(pipe.ffrnet)
    contexts = {
        pipe.unet: pipe.identity_attention.context(pipe.unet, people * num_tokens, 0.8, regions),
        pipe.ffrnet: RegionalContext(regions.masks(people * num_tokens)),
    }
    with torch.enable_grad():
        for net, _, attn in attention_layers(pipe):
            queries = (size[0] + 1) // 2 * ((size[1] + 1) // 2)
            hidden_states = torch.randn(2, queries, attn.to_q.in_features)
            tokens = torch.randn(2, people * num_tokens, width, requires_grad=True)
            context = torch.cat([torch.randn(2, 7, width), tokens], dim=1) if net is pipe.unet else tokens
            out = attn(hidden_states, encoder_hidden_states=context, **{CONTEXT_KEY: contexts[net]})
            owners = owners_of(regions, queries)
            assert owners.sum(0).eq(1).all()
            for i, own in enumerate(owners):
                assert own.any()
                (gradient,) = torch.autograd.grad(out[:, own].square().sum(), tokens, retain_graph=True)
                gradient = gradient.unflatten(1, (people, num_tokens))
                for j in range(people):
                    assert gradient[:, j].any() == (i == j)
                checked += 1
    assert checked == people * sum(1 for _ in attention_layers(pipe))
    assert all(type(attn.processor) is AttnProcessor2_0 for *_, attn in attention_layers(pipe))


@pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline])
@pytest.mark.parametrize("boxes", [(LEFT, RIGHT), (LEFT, MIDDLE, RIGHT)], ids=["two", "three"])
def test_identities_keep_to_their_regions_while_an_image_is_made(make, boxes):
    """Each cross-attention of each step again, with other tokens for the last person: others' places stay to the bit."""
    pipe = tiny.with_adapter(make())
    regions = Regions(torch.tensor(boxes), 32, 48)
    num_tokens = pipe.facesnap_config.num_tokens
    seen = set()

    def again(attn, args, kwargs, out):
        if attn in busy:
            return
        busy.add(attn)
        context = kwargs["encoder_hidden_states"].clone()
        context[:, -num_tokens:] = torch.randn_like(context[:, -num_tokens:])
        changed = attn(*args, **{**kwargs, "encoder_hidden_states": context}) != out
        busy.remove(attn)
        last = owners_of(regions, out.shape[1])[-1]
        assert not changed[:, ~last].any() and changed[:, last].any(dim=-1).all()
        seen.add(attn)

    busy: set = set()
    handles = [attn.register_forward_hook(again, with_kwargs=True) for *_, attn in attention_layers(pipe)]
    generate(pipe, [Person(tiny.identity(i), box) for i, box in enumerate(boxes)])
    for handle in handles:
        handle.remove()
    assert seen == {attn for *_, attn in attention_layers(pipe)}


@pytest.mark.parametrize("make", [tiny.sd_pipeline, tiny.xl_pipeline])
def test_the_same_person_everywhere_is_one_person(make):
    pipe = tiny.with_adapter(make())
    pipe.set_facesnap_scale(landmark_scale=0)
    who = tiny.identity()
    expected = generate(pipe, identity=who)
    torch.testing.assert_close(generate(pipe, [Person(who, LEFT), Person(who, RIGHT)]), expected, atol=1e-5, rtol=0)
    assert (generate(pipe, [Person(who, LEFT), Person(tiny.identity(8), RIGHT)]) - expected).abs().max() > 1e-4


def test_the_same_tokens_everywhere_are_plain_attention_in_ffrnet(pipe):
    torch.manual_seed(0)
    regions = Regions(torch.tensor([LEFT, RIGHT]), 16, 24)
    tokens = torch.randn(2, 5, pipe.unet.config.cross_attention_dim)
    accept_contexts(pipe.ffrnet)
    for net, _name, attn in attention_layers(pipe):
        if net is pipe.ffrnet:
            hidden_states = torch.randn(2, 16 * 24, attn.to_q.in_features)
            expected = attn(hidden_states, encoder_hidden_states=tokens)
            context = {CONTEXT_KEY: RegionalContext(regions.masks(10))}
            out = attn(hidden_states, encoder_hidden_states=tokens.repeat(1, 2, 1), **context)
            torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_person_counts(pipe, count):
    boxes = [LEFT, RIGHT, MIDDLE][:count]
    people = [Person(tiny.identity(seed=i), box) for i, box in enumerate(boxes)]
    image = generate(pipe, people)
    for i in range(count):
        for other in (
            Person(tiny.identity(seed=9), boxes[i]),
            Person(tiny.identity(seed=i), boxes[i], pose=HeadPose(yaw=50)),
            Person(tiny.identity(seed=i), boxes[i], expression="smile"),
        ):
            changed = [*people[:i], other, *people[i + 1 :]]
            assert (generate(pipe, changed) - image).abs().max() > 1e-4


def test_one_ffrnet_pass_a_step(pipe):
    calls = []
    handle = pipe.ffrnet.register_forward_hook(lambda *args: calls.append(1))
    generate(pipe, [Person(tiny.identity(), LEFT), Person(tiny.identity(4), RIGHT)])
    handle.remove()
    assert len(calls) == tiny.CALL["num_inference_steps"]


def test_in_batches_and_image_to_image():
    pipe = tiny.with_adapter(tiny.sd_pipeline(), FaceSnapImg2ImgPipeline)
    people = [Person(tiny.identity(), LEFT), Person(tiny.identity(4), RIGHT)]
    start = torch.rand(1, 3, 64, 96, generator=tiny.seeded())
    call = {"image": start, "strength": 1.0, "num_inference_steps": 2, "output_type": "pt"}
    images = pipe(["a cat", "a dog"], people=people, generator=[tiny.seeded(), tiny.seeded()], **call).images
    one = pipe("a dog", people=people, generator=tiny.seeded(), **call).images
    assert images.shape == (2, 3, 64, 96)
    torch.testing.assert_close(images[1:], one, atol=1e-4, rtol=0)


WRONG = {
    "no list": (lambda who: Person(who, LEFT), "list of Person"),
    "empty": (lambda who: [], "empty"),
    "no person": (lambda who: [who], r"people\[0\] must be a Person"),
    "fewer boxes than people": (lambda who: [Person(who, LEFT), Person(who)], r"people\[1\] has no face_box"),
    "out of range": (
        lambda who: [Person(who, LEFT), Person(who, (0.9, 0.2, 1.5, 0.5))],
        r"people\[1\].*outside of the image",
    ),
    "inside out": (lambda who: [Person(who, (0.5, 0.1, 0.2, 0.4))], "left < right"),
    "two boxes": (lambda who: [Person(who, (LEFT, RIGHT))], "one box"),
    "overlapping": (lambda who: [Person(who, LEFT), Person(who, (0.3, 0.3, 0.8, 0.8))], "overlap"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_people_raise_typed_errors(pipe, case):
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        generate(pipe, make(tiny.identity()))
    assert "\n" not in str(caught.value)


def test_people_go_without_the_arguments_for_one_person(pipe):
    people = [Person(tiny.identity(), LEFT)]
    for argument in ({"identity": tiny.identity()}, {"pose": HeadPose(yaw=3)}, {"face_box": RIGHT}):
        with pytest.raises(InputError, match="for one person"):
            generate(pipe, people, **argument)
    stranger = FaceIdentity(face_embeds=torch.ones(128), face_encoder_id="another/encoder")
    with pytest.raises(FaceEncoderMismatchError):
        generate(pipe, [Person(stranger, LEFT)])
