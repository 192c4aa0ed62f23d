"""Latents of fixed crops, computed once."""

import io

import PIL.Image
import pytest
import tiny_training
import torch

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training import latents
from facesnap_diffusers.training.latents import CropLatents
from facesnap_diffusers.training.trainer import Trainer


class TestFixedCrops:
    @pytest.fixture
    def trainer(self, base, faces, tmp_path, monkeypatch):
        monkeypatch.setattr(latents, "CHUNK", 16)
        trainer = Trainer(tiny_training.config(base, faces, tmp_path, data={"crops": 4, "flip": 0.25}))
        # next to no noise: the channels of the logarithm of its variance
        last = trainer.pipeline.vae.quant_conv
        last.weight.data[4:], last.bias.data[4:] = 0, -30
        trainer._compute_latents(trainer.samples.latents)
        return trainer

    def test_latents_are_those_of_the_pixels(self, trainer):
        samples, count = trainer.samples, len(trainer.samples.faces)
        assert (
            samples.latents.count == 4 * count
            and sum(samples.fixed_crop(i).mirrored for i in range(4 * count)) == count
        )
        numbers = range(0, 4 * count, 7)
        photos = [PIL.Image.open(io.BytesIO(samples.faces[number // 4].image)).convert("RGB") for number in numbers]
        pixels = torch.stack([samples.fixed_crop(n).pixels(photo) for n, photo in zip(numbers, photos)])
        vae = trainer.pipeline.vae
        with torch.no_grad():
            expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        found = torch.stack([samples.latents[number].float() for number in numbers])
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
        others = (expected[:, None] - expected[None]).abs().amax((2, 3, 4))
        assert others[~torch.eye(len(numbers), dtype=bool)].min() > 0.02, "another crop's would not do"

    def test_samples_have_the_latents_of_their_crop(self, trainer):
        """A photo's crops come in turn; the landmarks of a sample are those of the crop that its latents show."""
        samples, count = trainer.samples, len(trainer.samples.faces)
        seen = set()
        for position in range(4 * count):
            sample, index = samples[position], samples.photo(position)
            assert "pixel_values" not in sample and "encoder_noise" not in sample
            (number,) = [
                number
                for number in range(4 * index, 4 * index + 4)
                if torch.equal(samples.latents[number], sample["latents"])
            ]
            seen.add(number)
            crop, face = samples.fixed_crop(number), samples.faces[index]
            expected = crop.points(face.landmarks, samples.predictor.config.mirror)
            assert torch.equal(sample["detected"], expected)
        assert len(seen) == 4 * count

    def test_are_the_same_bits_however_they_are_computed(self, trainer):
        folder = trainer.samples.latents.folder
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(before) == 4
        for number in range(3):
            (folder / f"{number:06d}.npy").unlink()
        again = CropLatents(folder, trainer.samples.latents.count, trainer.samples.latents.settings)
        trainer.samples.latents = again
        for rank in range(2):
            again.compute(trainer._encode_crops, trainer.config.batch_size, rank, 2)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_of_other_crops_are_refused(self, base, faces, tmp_path, trainer):
        with pytest.raises(InputError, match="latents of other data"):
            Trainer(tiny_training.config(base, faces, tmp_path, data={"crops": 4, "flip": 0.5})).train()

    def test_belong_to_the_weights_of_the_encoder(self, trainer):
        vae, before = trainer.pipeline.vae, trainer._latent_settings()
        vae.decoder.conv_in.weight.data += 1
        assert trainer._latent_settings() == before
        vae.encoder.conv_in.weight.data += 1
        assert trainer._latent_settings() != before
