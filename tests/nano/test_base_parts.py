"""The parts that the nano base is built of: tokenizer, autoencoder start, UNet and scheduler."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer


pytest.importorskip("scipy", reason="the captions' words come with the renderer, which needs scipy")
pytest.importorskip("cv2", reason="the training script needs opencv")

from autoencoder_start import start_from_components
from base_model import TEXT_LENGTH, create_scheduler, create_text_encoder, create_tokenizer, create_unet
from people.captions import vocabulary
from restore import renumber_tokens

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


pytestmark = pytest.mark.slow


def test_every_caption_word_is_one_token(tmp_path):
    tokenizer = create_tokenizer()
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "a photo of a person with long blond hair, an astronaut"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == TEXT_LENGTH
    assert "astronaut" in loaded.decode(loaded(text).input_ids)


def test_tokens_have_the_same_numbers_every_time():
    first, *other_vocabularies = (create_tokenizer().get_vocab() for _ in range(5))
    assert all(vocab == first for vocab in other_vocabularies)


def test_renumbered_tokens_mean_the_same():
    wanted = create_tokenizer()
    vocab = wanted.get_vocab()
    merges = [tuple(pair) for pair in json.loads(wanted.backend_tokenizer.to_str())["model"]["merges"]]
    own = CLIPTokenizer(vocab={token: len(vocab) - 1 - number for token, number in vocab.items()}, merges=merges)
    text_encoder = create_text_encoder(wanted)
    text = "a photo of a person with long blond hair, an astronaut"
    with torch.no_grad():
        before = text_encoder(**own(text, return_tensors="pt")).last_hidden_state
        renumber_tokens(text_encoder, own, wanted)
        after = text_encoder(**wanted(text, return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(after, before)


def test_autoencoder_starts_at_the_principal_components():
    """Its first reconstruction is the best linear one, computed here by singular values."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(24, 3, 9, 9, generator=generator), size=(64, 64), mode="bicubic")
    images = smooth.clamp(0, 1) * 2 - 1
    vae = AutoencoderPatch()
    start_from_components(vae, images, latent_std=0.4, whitening=0.65)
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
        output = vae.decode(latents).sample
    patches = F.unfold(images, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    mean = patches.mean(0)
    _, _, basis = torch.linalg.svd(patches - mean, full_matrices=False)
    best = (patches - mean) @ basis[:16].T @ basis[:16] + mean
    expected = F.fold(best.view(24, -1, 192).transpose(1, 2), (64, 64), 8, stride=8)
    torch.testing.assert_close(output, expected, atol=2e-3, rtol=0)
    assert latents.square().mean().sqrt().item() == pytest.approx(0.4, rel=1e-2)


def test_autoencoder_saves_and_loads(tmp_path):
    vae = AutoencoderPatch(decoder_channels=(16, 16, 16), decoder_blocks=(1, 1, 1))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderPatch.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(images).sample, vae(images).sample)
    assert isinstance(loaded, AutoencoderKL)
    assert loaded.config.scaling_factor == 2.5
    assert len(loaded.config.block_out_channels) == 4


def test_scheduler_ends_in_pure_noise():
    scheduler = create_scheduler()
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.0, abs=1e-6)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0].item() == 999
    assert np.all(np.diff(scheduler.timesteps.numpy()) < 0)


def test_stock_pipelines_take_the_parts(tmp_path):
    """Saved, loaded and run as text-to-image and image-to-image, with a smaller UNet."""
    tokenizer = create_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderPatch(decoder_channels=(16, 16, 16), decoder_blocks=(1, 1, 1)),
        text_encoder=create_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=create_unet((16, 32)),
        scheduler=create_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
    arguments = {"num_inference_steps": 2, "guidance_scale": 3.0, "guidance_rescale": 0.7, "output_type": "np"}
    images = [
        p("a photo of a person", generator=torch.Generator().manual_seed(0), **arguments).images
        for p in (pipeline, loaded)
    ]
    assert images[0].shape == (1, 128, 128, 3)
    assert np.isfinite(images[0]).all()
    np.testing.assert_allclose(images[0], images[1], atol=1e-5)
    again = StableDiffusionImg2ImgPipeline.from_pipe(loaded, vae=loaded.vae)
    output = again("a photo of a person", image=images[0], strength=1.0, **arguments).images
    assert output.shape == (1, 128, 128, 3)
