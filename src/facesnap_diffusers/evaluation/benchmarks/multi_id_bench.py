"""MultiID-Bench: likeness to a true picture instead of to the reference, and how much of the reference is copied."""

import json
from pathlib import Path

from ...errors import InputError, one_line
from ..cases import Case, safe_id
from .base import Benchmark, Column


INDEX = "v200_single.json"
IMAGES = Path("v200_single") / "untar"


def multi_id_bench(folder: Path, seed: int = 0) -> Benchmark:
    """
    The subset with one person an image, as the benchmark's own `hf2bench.py` writes it: an index `v200_single.json`, a
    list of `prompt`, `image_paths` (the reference) and `ori_img_path` (the true picture), its images in
    `v200_single/untar`. Source: Xu et al. 2025, "WithAnyone: Towards Controllable and ID Consistent Image Generation".
    """
    try:
        entries = json.loads((folder / INDEX).read_text())
        if not entries:
            raise ValueError("it is empty")
        cases = tuple(
            Case(
                id=safe_id(Path(entry["ori_img_path"]).stem),
                person=entry["image_paths"][0],
                reference=tuple(_existing(folder / IMAGES / path) for path in entry["image_paths"]),
                prompt=entry["prompt"],
                seed=seed + number,
                ground_truth=_existing(folder / IMAGES / entry["ori_img_path"]),
            )
            for number, entry in enumerate(entries)
        )
    except FileNotFoundError as error:
        raise InputError(
            f"data {str(folder)!r} lacks {error.filename}; make the folder with MultiID-Bench's hf2bench.py"
        ) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{folder / INDEX} is not an index of MultiID-Bench ({type(error).__name__}: {one_line(error)})"
        ) from None
    columns = (
        Column("Sim(GT)", "ground_truth_similarity", better="higher"),
        Column("Sim(Ref)", "face_similarity"),
        Column("Copy-Paste", "copy_paste", better="lower"),
        Column("CLIP-T", "clip_t", better="higher", digits=2),
        Column("CLIP-I (ground truth)", "clip_i_ground_truth", better="higher"),
        Column("no face %", "no_face", "percent", "lower", digits=1),
        Column("FID", "fid", better="lower", digits=1),
        Column("KID", "kid", better="lower", digits=4),
    )
    notes = (
        f"MultiID-Bench, of its {len(cases)} cases with one person; those with several people are left out.",
        "Copy-Paste is 1 where a face equals the reference, -1 where it equals the true picture.",
        "Its paper averages similarities over ArcFace, FaceNet and AdaFace; these are by the recognizer named here.",
    )
    return Benchmark("multi_id_bench", cases, columns, needs_clip=True, notes=notes)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return path
