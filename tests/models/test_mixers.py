"""What every mixer keeps to: the contract of `IdentityMixer`, one suite for all of them."""

import threading

import pytest
import third_party
import tiny
import torch

from facesnap_diffusers.adapter.config import FaceSnapConfig
from facesnap_diffusers.conditioner import FaceConditioner
from facesnap_diffusers.errors import AdapterError, InputError
from facesnap_diffusers.identity import FaceIdentity
from facesnap_diffusers.interop.mixers import (
    FaceIDMixer,
    FaceIDPlusMixer,
    FullFaceMixer,
    ImagePromptMixer,
    InstantIDMixer,
    PlusFaceMixer,
)
from facesnap_diffusers.models.landmark_predictor import load_landmark_predictor
from facesnap_diffusers.models.mixer import FacialAttributeMixer


WIDTH, EMBED, STATES = 64, 32, 24
FAM = {"cross_attention_dim": WIDTH, "hidden_size": 32, "num_layers": 1, "attention_head_dim": 8, "num_tokens": 5}
FACE_ID = {"cross_attention_dim": WIDTH, "face_embed_dim": EMBED}
IMAGE = {"cross_attention_dim": WIDTH, "image_embed_dim": STATES, "image_sequence_length": 5}
PLUS = {**FACE_ID, **IMAGE, "hidden_size": WIDTH, "num_heads": 1}

MIXERS = {
    "FacialAttributeMixer": lambda: FacialAttributeMixer(**FAM, face_embed_dim=EMBED, image_embed_dim=STATES),
    "with shortcut": lambda: FacialAttributeMixer(
        **FAM, face_embed_dim=EMBED, image_embed_dim=STATES, face_shortcut=True
    ),
    "face only": lambda: FacialAttributeMixer(**FAM, face_embed_dim=EMBED, image_embed_dim=None),
    "CLIP only": lambda: FacialAttributeMixer(**FAM, face_embed_dim=None, image_embed_dim=STATES),
    "FaceID": lambda: FaceIDMixer(**FACE_ID),
    "Portrait": lambda: FaceIDMixer(**FACE_ID, num_tokens=16, per_photo=True),
    "FaceID-Plus": lambda: FaceIDPlusMixer(**PLUS),
    "FaceID-Plus v2": lambda: FaceIDPlusMixer(**PLUS, shortcut=True),
    "InstantID": lambda: InstantIDMixer(**FACE_ID, hidden_size=64, num_heads=1),
    "Portrait unnorm": lambda: InstantIDMixer(**FACE_ID, hidden_size=64, num_heads=1, per_photo=True),
    "plus-face": lambda: PlusFaceMixer(**IMAGE, num_tokens=6, hidden_size=64, num_heads=1),
    "full-face": lambda: FullFaceMixer(**IMAGE),
}


@pytest.fixture(params=MIXERS)
def mixer(request):
    torch.manual_seed(0)
    mixer = MIXERS[request.param]().eval().requires_grad_(False)
    for parameter in mixer.parameters():  # what starts at zero has values too
        parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(mixer, ImagePromptMixer):
        mixer.set_image_encoder(tiny.image_encoder())
    return mixer


def features(mixer, batch: int, seed: int = 1):
    """What the mixer takes of faces: embeddings and hidden states, or `None`."""
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(batch, EMBED, generator=generator)
    states = torch.randn(batch, 5, STATES, generator=generator)
    return (None if mixer.face_embed_dim is None else embeds, None if mixer.image_embed_dim is None else states)


def people(mixer, count: int) -> list[FaceIdentity]:
    states = torch.randn(count, 5, STATES, generator=torch.Generator().manual_seed(2))
    with_states = mixer.image_embed_dim is not None
    return [
        FaceIdentity(
            face_embeds=torch.randn(EMBED, generator=torch.Generator().manual_seed(i)),
            face_encoder_id=tiny.FACE_ENCODER,
            image_hidden_states=states[i] if with_states else None,
            image_encoder_id="image_encoder" if with_states else None,
        )
        for i in range(count)
    ]


def conditioner(mixer) -> FaceConditioner:
    config = FaceSnapConfig(
        face_encoder_id=tiny.FACE_ENCODER,
        face_embed_dim=EMBED,
        image_encoder_id="image_encoder" if mixer.image_embed_dim is not None else None,
        num_tokens=mixer.num_tokens,
    )
    return FaceConditioner(config, mixer, load_landmark_predictor())


def test_the_sizes_that_it_states_are_those_of_its_tokens(mixer):
    tokens = mixer(*features(mixer, 3))
    assert tokens.shape == (3, mixer.num_tokens, mixer.cross_attention_dim)
    assert tokens.isfinite().all()


def test_each_sample_goes_by_its_own_features(mixer):
    both = mixer(*features(mixer, 2))
    assert (both[0] - both[1]).abs().max() > 1e-3
    for i in range(2):
        one = mixer(*(None if x is None else x[i : i + 1] for x in features(mixer, 2)))
        torch.testing.assert_close(one[0], both[i], atol=1e-5, rtol=0)


def test_unconditional_tokens_depend_on_nobody(mixer):
    mask = torch.tensor([False, True])
    first, second = (mixer(*features(mixer, 2, seed), mask) for seed in (1, 2))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0], first[1])
    torch.testing.assert_close(first[0], mixer(*features(mixer, 2))[0], atol=1e-5, rtol=0)


def test_nothing_stays_from_one_pass_to_the_next(mixer):
    expected = mixer(*features(mixer, 2))
    before = {name: (id(module), dict(vars(module))) for name, module in mixer.named_modules()}
    mixer(*features(mixer, 3, seed=9), torch.tensor([True, False, True]))
    after = {name: (id(module), dict(vars(module))) for name, module in mixer.named_modules()}
    assert before == after
    assert torch.equal(mixer(*features(mixer, 2)), expected)


def test_threads_share_it(mixer):
    inputs = [features(mixer, 1, seed) for seed in range(8)]
    expected = [mixer(*each) for each in inputs]
    wrong = []

    def work(i):
        wrong.extend(i for _ in range(20) if not torch.equal(mixer(*inputs[i]), expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_features_that_it_takes_are_checked(mixer):
    embeds, states = features(mixer, 2)
    if embeds is not None:
        with pytest.raises(InputError, match=rf"\(batch, {EMBED}\)"):
            mixer(None, states)
        with pytest.raises(InputError, match=rf"\(batch, {EMBED}\)"):
            mixer(embeds[:, :-1], states)
    if states is not None:
        with pytest.raises(InputError, match=rf"sequence, {STATES}\)"):
            mixer(embeds, None)
        with pytest.raises(InputError, match=rf"sequence, {STATES}\)"):
            mixer(embeds, states[..., :-1])


def test_the_output_norm_ends_it_or_there_is_none(mixer):
    try:
        norm = mixer.output_norm
    except AdapterError as error:
        assert isinstance(mixer, FaceIDPlusMixer) and "\n" not in str(error)
        return
    outputs = []
    handle = norm.register_forward_hook(lambda module, args, output: outputs.append(output))
    tokens = mixer(*features(mixer, 2))
    handle.remove()
    assert torch.equal(outputs[-1].reshape(tokens.shape), tokens)


def test_it_is_saved_and_loaded(mixer, tmp_path):
    mixer.save_pretrained(tmp_path)
    again = type(mixer).from_pretrained(tmp_path).eval()
    mask = torch.tensor([False, True])
    assert torch.equal(again(*features(mixer, 2), mask), mixer(*features(mixer, 2), mask))
    assert again.per_photo == mixer.per_photo


def test_people_get_the_same_tokens_alone_and_together(mixer):
    """Through the conditioner: in a batch, alone, and as training mixes them."""
    everyone = people(mixer, 3)
    tokens, unconditional = conditioner(mixer).tokens(everyone)
    assert tokens.shape == unconditional.shape == (3, mixer.num_tokens, WIDTH)
    for i, person in enumerate(everyone):
        alone = conditioner(mixer).tokens([person])
        assert torch.equal(alone[0][0], tokens[i]) and torch.equal(alone[1][0], unconditional[i])
    states = None if everyone[0].image_hidden_states is None else everyone[0].image_hidden_states.expand(2, -1, -1)
    embeds = everyone[0].face_embeds.expand(2, -1)
    mixed = conditioner(mixer).mix(embeds, states, torch.tensor([False, True]))
    assert torch.equal(mixed[0], tokens[0]) and torch.equal(mixed[1], unconditional[0])


def test_photos_of_one_person(mixer):
    """Their mean, or for mixers that say so each photo's own tokens, in the order of the photos."""
    photos = people(mixer, 3)
    fused = FaceIdentity.fuse(photos)
    tokens, _ = conditioner(mixer).tokens([fused])
    if not mixer.per_photo:
        assert tokens.shape == (1, mixer.num_tokens, WIDTH)
        return
    assert tokens.shape == (1, 3 * mixer.num_tokens, WIDTH)
    own, _ = conditioner(mixer).tokens(photos)
    torch.testing.assert_close(tokens[0].unflatten(0, (3, -1)), own, atol=1e-5, rtol=0)


def test_the_checkpoints_of_others_become_these_mixers():
    """The suite above stands for what `load_facesnap_adapter` gives."""
    base = tiny.sd_pipeline()
    encoder = {"image_encoder": tiny.image_encoder()}
    for make, options, kind in (
        (third_party.faceid, {}, FaceIDMixer),
        (third_party.faceid_plus, {**encoder, "faceid_plus_v2": True}, FaceIDPlusMixer),
    ):
        pipe = tiny.facesnap(base)
        pipe.load_facesnap_adapter(make(base.unet), **options)
        assert type(pipe.mixer) is kind
