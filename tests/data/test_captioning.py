"""Captions of a model, through `facesnap prepare` and as transformers itself makes them."""

import json
import pickle

import pytest
from command_line import command
from tiny_captioning import picture, save_blip, save_llava
from tiny_preparation import CONFIG, MarkedFaces, photo, run_silently, write_photos
from transformers import BertConfig, BertModel, pipeline

from facesnap_diffusers.data import photo_preparation
from facesnap_diffusers.data.captioning import PROMPT, PROMPT_WITHOUT_FACE, Captioner
from facesnap_diffusers.data.photo_preparation import PhotoPreparer
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.shards import MANIFEST, SETTINGS, PreparedFaces
from facesnap_diffusers.data.sources import Item
from facesnap_diffusers.errors import InputError


pytestmark = pytest.mark.slow

DARK, BRIGHT = "a young man with a beard, in a red shirt", "a woman smiling"
WORDS = ["a", "man", "woman", "smiling", "in", "red", "shirt", "blue", "hat"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Says `DARK` of a dark and `BRIGHT` of a bright picture."""
    return save_blip(tmp_path_factory.mktemp("models") / "blip", [(picture(40), DARK), (picture(220), BRIGHT)])


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("models") / "llava", WORDS)


def captions(folder):
    faces = PreparedFaces([str(folder)])
    return {faces[index].info["source"]: faces[index].info["caption"] for index in range(len(faces))}


class TestCaptioner:
    def test_it_says_what_the_model_learned(self, blip):
        captioner = Captioner(str(blip))
        assert [captioner(picture(shade).resize((50, 70))) for shade in (40, 220, 40)] == [DARK, BRIGHT, DARK]

    def test_a_prompt_begins_the_caption(self, blip):
        assert Captioner(str(blip), "a woman")(picture(220)) == BRIGHT
        assert Captioner(str(blip), "smiling")(picture(220)).startswith("smiling")

    @pytest.mark.parametrize("leave_out_face", [False, True])
    def test_a_chat_model_answers_as_in_its_pipeline(self, llava, leave_out_face):
        prompt = f"{PROMPT} {PROMPT_WITHOUT_FACE}" if leave_out_face else PROMPT
        reference = pipeline("image-text-to-text", model=str(llava), device="cpu")
        captioner = Captioner(str(llava), leave_out_face=leave_out_face)
        answers = []
        for shade in (40, 220):
            content = [{"type": "image", "image": picture(shade)}, {"type": "text", "text": prompt}]
            (answer,) = reference(
                text=[{"role": "user", "content": content}],
                return_full_text=False,
                generate_kwargs={"do_sample": False, "max_new_tokens": 75},
            )
            answers.append(answer["generated_text"].strip())
        assert [captioner(picture(shade)) for shade in (40, 220)] == answers
        assert answers[0] != answers[1]

    def test_what_is_no_captioning_model(self, tmp_path):
        with pytest.raises(InputError, match="caption_model '.*none' cannot be loaded"):
            Captioner(str(tmp_path / "none"))
        BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)).save_pretrained(
            tmp_path / "bert"
        )
        with pytest.raises(InputError, match="that transformers loads as AutoModelForImageTextToText"):
            Captioner(str(tmp_path / "bert"))

    def test_a_device_that_is_not_there(self, blip):
        with pytest.raises(InputError, match="device 'cuda:63' cannot be used for caption_model"):
            Captioner(str(blip), device="cuda:63")

    def test_a_prompt_without_a_model(self):
        with pytest.raises(InputError, match="caption_prompt is given without caption_model"):
            PrepareConfig(caption_prompt="a photo of")


class TestPrepare:
    def test_command(self, tmp_path, monkeypatch):
        """One photo has a caption, one has an empty file in its place, one nothing."""
        monkeypatch.setattr(photo_preparation, "default_analyzer", lambda encoder, normalize: MarkedFaces(normalize))
        photos, output = tmp_path / "in", tmp_path / "out"
        photos.mkdir()
        for number, name in enumerate(("given", "empty", "none"), start=1):
            photo(number, (180, 160)).save(photos / f"{name}.png")
        (photos / "given.txt").write_text("an old woman with gray hair and a necklace")
        (photos / "empty.txt").write_text("\n")
        learned = save_blip(tmp_path / "blip", [(photo(2), DARK), (photo(3), "a girl with pigtails")])
        options = ["--resolution", "150", "--min-face", "20", "--min-sharpness", "0", "--leave-out-face"]
        command("prepare", photos, output, "--caption-model", learned, *options)
        assert captions(output) == {
            "given.png": "a woman with a necklace",
            "empty.png": "a man, in a red shirt",
            "none.png": "a girl",
        }
        preparation = json.loads((output / SETTINGS).read_text())["preparation"]
        assert preparation["caption_model"] == str(learned) and preparation["leave_out_face"] is True

    def test_without_a_model_captions_stay_as_they_are(self, tmp_path):
        write_photos(tmp_path / "in", 2)
        items = [Item(f"{n}", str(tmp_path / f"in/00{n}.png"), caption=("a young man", None)[n]) for n in range(2)]
        run_silently(items, tmp_path / "out", CONFIG)
        assert captions(tmp_path / "out") == {"0": "a young man", "1": None}
        assert "caption" not in (tmp_path / "out" / SETTINGS).read_text()

    def test_captions_of_two_models_do_not_mix(self, tmp_path, blip, llava):
        write_photos(tmp_path / "in", 1)
        items = [Item("0", str(tmp_path / "in/000.png"))]
        for model in (blip, llava, None):
            config = PrepareConfig(**{**vars(CONFIG), "caption_model": model and str(model)})
            if model == blip:
                run_silently(items, tmp_path / "out", config)
                continue
            with pytest.raises(InputError, match=r"prepared with other settings \(caption_model\)"):
                run_silently(items, tmp_path / "out", config)

    def test_an_error_of_the_model_comes_before_the_first_photo(self, tmp_path):
        write_photos(tmp_path / "in", 1)
        config = PrepareConfig(**{**vars(CONFIG), "caption_model": str(tmp_path / "none")})
        with pytest.raises(InputError, match="cannot be loaded"):
            run_silently([Item("0", str(tmp_path / "in/000.png"))], tmp_path / "out", config)
        assert not (tmp_path / "out" / MANIFEST).exists()

    def test_each_process_loads_its_own_model(self, blip):
        preparer = PhotoPreparer(PrepareConfig(**{**vars(CONFIG), "caption_model": str(blip)}), MarkedFaces)
        preparer.check()
        sent = pickle.loads(pickle.dumps(preparer))
        assert "captioner" in vars(preparer) and "captioner" not in vars(sent)
        preparer.release()
        assert vars(preparer).keys() == vars(sent).keys()
        assert sent.captioner(picture(220)) == BRIGHT
