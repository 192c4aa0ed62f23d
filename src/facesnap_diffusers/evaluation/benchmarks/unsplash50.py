"""PuLID's evaluation: a likeness prompt and twenty editing prompts, four images for each person and prompt."""

from pathlib import Path

from ...errors import InputError
from ..cases import Case, image_files, safe_id
from .base import Benchmark, Column


IMAGES_PER_PROMPT = 4

# Guo et al. 2024, "PuLID: Pure and Lightning ID Customization via Contrastive Alignment", section 7.4 and table 7.
SIMILARITY_PROMPT = "portrait, color, cinematic, in garden, soft light, detailed face"
EDITING_PROMPTS = (
    "portrait, a person wearing a spacesuit",
    "portrait, a person wearing a surgical mask",
    "portrait, a person wearing an eye mask",
    "portrait, a person wearing headphones with red hair",
    "portrait, a person wearing a doctoral cap",
    "portrait, a person cooking in the kitchen",
    "portrait, a person coding in front of a computer",
    "portrait, a young child laughing at the camera",
    "portrait, an angry person,old",
    "portrait, color,side view",
    "portrait, with a beautiful purple sunset at the beach in the background",
    "portrait, pencil drawing",
    "portrait,3D Animation, Disney style,cute,popmart blindbox",
    "portrait, kawaii style, cute, adorable, brightly colored, cheerful, anime influence, highly detailed",
    "portrait,latte art in a cup",
    "portrait, side view, in papercraft style",
    "portrait, a garden gnome, in papercraft sketch, wearing a glasses",
    "portrait, Madhubani, wearing a mask",
    "portrait, Ukiyo-e Painting style, playing the violin",
    "portrait of green-skinned shrek, wearing lacoste purple sweater",
)


def unsplash50(folder: Path, seed: int = 0) -> Benchmark:
    """Every image in `folder` is one person: the 50 of Unsplash-50 (Gal et al. 2024), or any others."""
    photos = image_files(folder)
    if not photos:
        raise InputError(f"data {str(folder)!r} has no images; put one photo of each person there")
    cases: list[Case] = []
    for photo in photos:
        person = photo.relative_to(folder).with_suffix("").as_posix()
        for number, prompt in enumerate((SIMILARITY_PROMPT, *EDITING_PROMPTS)):
            for image in range(IMAGES_PER_PROMPT):
                cases.append(
                    Case(
                        id=safe_id(person, f"{number:02}", image),
                        person=person,
                        reference=(photo,),
                        prompt=prompt,
                        seed=seed + len(cases),
                        group="editing" if number else "similarity",
                    )
                )
    columns = (
        Column("Face Sim.", "face_similarity", better="higher", group="similarity"),
        Column("CLIP-T", "clip_t", better="higher", group="editing", digits=2),
        Column("CLIP-I (before/after ID)", "clip_i_text", better="higher", group="editing"),
        Column("distance (median)", "face_distance", "median", "lower", group="similarity"),
        Column("no face %", "no_face", "percent", "lower", group="similarity", digits=1),
        Column("top-1 %", "top1", "percent", "higher", group="similarity", digits=1),
        Column("top-5 %", "top5", "percent", "higher", group="similarity", digits=1),
        Column("CLIP-I (reference)", "clip_i", group="editing"),
        Column("LPIPS diversity", "diversity", better="higher"),
        Column("FID", "fid", better="lower", digits=1),
        Column("KID", "kid", better="lower", digits=4),
    )
    notes = (
        f"PuLID's benchmark: face metrics on its similarity prompt, CLIP metrics on its {len(EDITING_PROMPTS)} editing"
        f" prompts, {IMAGES_PER_PROMPT} images for each of {len(photos)} people and prompt.",
        "Its paper measures Face Sim. with CurricularFace, so figures by another recognizer do not compare with its tables.",
    )
    return Benchmark("unsplash50", tuple(cases), columns, needs_clip=True, notes=notes)
