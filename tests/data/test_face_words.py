"""What a face looks like, taken out of captions."""

import pytest

from facesnap_diffusers.data.face_words import without_face


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a young man with a beard and glasses in a red shirt", "a man with glasses in a red shirt"),
        (
            "a woman with long blonde hair, blue eyes, and a red dress standing in a park",
            "a woman with a red dress standing in a park",
        ),
        ("A close-up of an elderly asian woman with gray hair smiling", "A close-up of a woman smiling"),
        ("a 30-year-old bearded man wearing a hat", "a man wearing a hat"),
        ("a dark-skinned woman with big brown eyes", "a woman"),
        ("a blonde in a red dress", "a person in a red dress"),
        ("a woman with her hair in a bun", "a woman"),
        ("a man with short, dark hair and a beard looking at the camera", "a man looking at the camera"),
        (
            "a man in his early thirties with fair skin, freckles and a wide smile, outdoors",
            "a man with a wide smile, outdoors",
        ),
        (
            "The woman has long brown hair and is smiling. She is wearing a blue jacket.",
            "The woman is smiling. She is wearing a blue jacket.",
        ),
        ("Her hair is long and brown. She looks to the left.", "She looks to the left."),
        ("A man smiles. Brown hair. Red shirt.", "A man smiles. Red shirt."),
        ("He laughs. His hair is short.", "He laughs."),
        ("long hair, red shirt, studio", "red shirt, studio"),
        ("a woman with blonde hair and a man with a beard", "a woman and a man"),
        ("his hair is long, and he smiles", "he smiles"),
        ("Long brown hair", ""),
        ("white woman in front of a brown wall", "woman in front of a brown wall"),
        ("a young unhappy man", "an unhappy man"),
        ("", ""),
    ],
)
def test_what_it_looks_like_goes(caption, expected):
    assert without_face(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "a black and white photo of a man in a suit and tie",
        "a woman with her eyes closed, studio light",
        "a woman with a smile on her face",
        "a smiling woman wearing sunglasses and a white hat, an old car in the background",
        "close-up, red lipstick, golden hour",
        "Two men walk. They laugh!",
    ],
)
def test_all_else_stays(caption):
    assert without_face(caption) == caption
