"""Long and weighted prompts, as the README shows them."""

import pytest
import tiny
import torch
from compel import CompelForSD, CompelForSDXL


pytestmark = pytest.mark.slow


LONG = "a portrait with a (wide)1.4 smile, " * 10


def test_prompts_of_more_than_77_tokens_and_weights():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    call = {"identity": tiny.identity(), "num_inference_steps": 2, "output_type": "pt"}

    def images(text):
        prompt = CompelForSD(pipe)(text, negative_prompt="blurry")
        embeds = {"prompt_embeds": prompt.embeds, "negative_prompt_embeds": prompt.negative_embeds}
        return prompt.embeds.shape[1], pipe(**embeds, generator=tiny.seeded(), **call).images

    length, image = images(LONG)
    assert length > 77 and torch.isfinite(image).all()
    # what stands beyond the 77th token, and the weight, both count
    assert (images(LONG + "blue hair")[1] - image).abs().max() > 1e-5
    assert (images(LONG.replace("(wide)1.4", "wide"))[1] - image).abs().max() > 1e-5


def test_xl():
    pipe = tiny.facesnap(tiny.xl_pipeline())
    tiny.add_adapter(pipe)
    prompt = CompelForSDXL(pipe)(LONG, negative_prompt="blurry")
    image = pipe(
        prompt_embeds=prompt.embeds,
        pooled_prompt_embeds=prompt.pooled_embeds,
        negative_prompt_embeds=prompt.negative_embeds,
        negative_pooled_prompt_embeds=prompt.negative_pooled_embeds,
        identity=tiny.identity(),
        num_inference_steps=1,
        output_type="pt",
    ).images
    assert prompt.embeds.shape[1] > 77 and torch.isfinite(image).all()
