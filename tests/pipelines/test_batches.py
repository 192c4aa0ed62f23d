"""Several prompts, people and images in one call."""

import pytest
import tiny
import torch


class TestBatches:
    def test_two_people_in_a_batch_are_two_single_calls(self, pipe):
        people = [tiny.identity(3), tiny.identity(4)]
        generators = [tiny.seeded(0), tiny.seeded(1)]
        both = pipe(["a cat", "a dog"], identity=people, generator=generators, **tiny.CALL).images
        for i, prompt in enumerate(["a cat", "a dog"]):
            alone = pipe(prompt, identity=people[i], generator=tiny.seeded(i), **tiny.CALL).images
            torch.testing.assert_close(both[i], alone[0], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
    def test_images_per_prompt(self, pipe, guidance_scale):
        people = [tiny.identity(3), tiny.identity(4)]
        generators = [tiny.seeded(i) for i in range(4)]
        images = pipe(
            "a cat",
            identity=people,
            num_images_per_prompt=2,
            generator=generators,
            guidance_scale=guidance_scale,
            **tiny.CALL,
        ).images
        assert len(images) == 4
        alone = pipe(
            "a cat", identity=people[1], generator=tiny.seeded(2), guidance_scale=guidance_scale, **tiny.CALL
        ).images
        torch.testing.assert_close(images[2], alone[0], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("name", ["pipe", "pipe_xl"])
    def test_one_prompt_and_negative_prompt_for_a_batch_of_faces(self, name, request):
        pipe = request.getfixturevalue(name)
        people, generators = [tiny.identity(3), tiny.identity(4)], [tiny.seeded(0), tiny.seeded(1)]
        prompts = {"negative_prompt": "blurred"} | ({"negative_prompt_2": "grey"} if name == "pipe_xl" else {})
        both = pipe("a cat", identity=people, generator=generators, **prompts, **tiny.CALL).images
        alone = pipe("a cat", identity=people[1], generator=tiny.seeded(1), **prompts, **tiny.CALL).images
        torch.testing.assert_close(both[1], alone[0], atol=1e-4, rtol=0)

    def test_prompt_embeds(self, pipe):
        embeds, negative = pipe.encode_prompt("a cat", "cpu", 1, True)
        images = tiny.generate(
            pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative, identity=tiny.identity()
        )
        assert torch.equal(images, tiny.generate(pipe, identity=tiny.identity()))
