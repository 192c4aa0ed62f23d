"""The recognizers that judge likeness: their order, their short names, and where their figures stand in the results."""

from __future__ import annotations

from collections.abc import Collection, Sequence


#: The metrics of likeness, which each recognizer measures for itself.
LIKENESS = (
    "face_similarity",
    "face_distance",
    "top1",
    "top5",
    "ground_truth_similarity",
    "ground_truth_distance",
    "copy_paste",
)

#: Marks a recognizer that took part in the training of what it judges.
TAUGHT = "†"


def metric_of(metric: str, encoder_id: str, encoder_ids: Sequence[str]) -> str:
    """The name of a recognizer's metric in the results: that of the first one in `encoder_ids` is plain."""
    return metric if encoder_id == encoder_ids[0] else f"{metric}/{encoder_id}"


def independent_first(encoder_ids: Sequence[str], taught_by: Collection[str]) -> list[str]:
    """Recognizers that took no part in training before those in `taught_by`; else in their order."""
    return sorted(encoder_ids, key=lambda encoder_id: encoder_id in taught_by)


def short_names(encoder_ids: Sequence[str]) -> dict[str, str]:
    """For heads of tables: `dlib`, `insightface`; where two begin alike, the name of the network."""
    origins = [encoder_id.partition("/")[0] for encoder_id in encoder_ids]
    return {
        encoder_id: origin if origins.count(origin) == 1 else encoder_id.rpartition("/")[2]
        for encoder_id, origin in zip(encoder_ids, origins, strict=True)
    }
