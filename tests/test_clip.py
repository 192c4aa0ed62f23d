"""CLIP similarities against the model's own forward."""

import numpy as np
import PIL.Image
import pytest
import torch
from evaluation_fixtures import clip_folder  # noqa: F401

from facesnap_diffusers.clip import ClipEncoder
from facesnap_diffusers.evaluation import metrics


def test_clip_is_what_the_model_itself_says(clip_folder):  # noqa: F811
    """CLIP's own forward gives all cosines of images and prompts, times its scale."""
    encoder = ClipEncoder(clip_folder)
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(3)]
    prompts = ["a red cat", "portrait, color, side view", "x" * 200]
    inputs = encoder.processor(
        text=prompts,
        images=[PIL.Image.fromarray(image) for image in images],
        return_tensors="pt",
        padding=True,
        truncation=True,
    )
    with torch.no_grad():
        output = encoder.model(**inputs)
    expected = output.logits_per_image / encoder.model.logit_scale.exp()
    by_image, by_prompt = encoder.encode_images(images), encoder.encode_prompts(prompts)
    assert np.abs(by_image @ by_prompt.T - expected.numpy()).max() < 1e-5
    assert np.ptp(expected.numpy()) > 0.1
    expected = torch.cosine_similarity(output.image_embeds[0], output.image_embeds[1], dim=0)
    assert metrics.cosine_similarity(by_image[0], by_image[1]) == pytest.approx(float(expected), abs=1e-5)
