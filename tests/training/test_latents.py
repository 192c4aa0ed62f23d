"""Latents of fixed crops, computed once."""

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
        trainer._compute_latents(trainer.samples.latents)
        return trainer

    def test_latents_are_those_of_the_pixels(self, trainer):
        samples, count = trainer.samples, len(trainer.samples.faces)
        assert (
            samples.latents.count == 4 * count
            and sum(samples.fixed_crop(i).mirrored for i in range(4 * count)) == count
        )
        numbers = range(0, 4 * count, 7)
        pixels = samples.fixed_pixels(numbers)
        # without the VAE's noise, whose deviation is bounded here
        vae = trainer.pipeline.vae
        with torch.no_grad():
            distribution = vae.encode(pixels).latent_dist
        for place, number in enumerate(numbers):
            mean, std = (getattr(distribution, name)[place] * vae.config.scaling_factor for name in ("mean", "std"))
            off = (samples.latents[number] - mean) / std
            assert off.abs().max() < 5 and 0.8 < off.std() < 1.2

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
