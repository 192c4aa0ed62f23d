"""From rendered people to the shards that `facesnap train` reads.

Run again to continue, or to take in new people.

    python embed_faces.py --split train && python prepare_shards.py --split train

What a photo of a person would leave to detectors is exact here: landmarks are the renderer's. Captions speak of the scene
and leave the person to the identity tokens.
"""

from __future__ import annotations

import argparse

import numpy as np
from dataset import SEED, SPLITS, TO_PACKAGE, Shard, shard_paths
from embed_faces import embedding_path
from people.captions import OPENING, scene_clauses
from train_image_encoder import SIZE as HEAD_SIZE
from workspace import add_work_dir

from facesnap_diffusers import DlibFaceAnalyzer, load_landmark_predictor
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import ShardSettings
from facesnap_diffusers.data.shards import ShardWriter


CROP_SIZE = 150  # of the aligned faces, as dlib's network takes them: for an identity loss against photos


def scene_caption(attributes: dict, rng: np.random.Generator) -> str:
    """What a prompt says when a face is given: expression, direction, shirt and background, not always all of them."""
    clauses = [c for c, share in zip(scene_clauses(attributes), (0.7, 0.5, 0.7, 0.9)) if rng.random() < share]
    return ", ".join([OPENING, *clauses])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    parser.add_argument("--head-size", type=int, default=HEAD_SIZE, help="of what the image encoder sees, in pixels")
    parser.add_argument("--output", default="shards", help="folder under the work directory (default: %(default)s)")
    args = parser.parse_args()
    predictor = load_landmark_predictor()
    settings = ShardSettings(
        face_encoder_id=DlibFaceAnalyzer.encoder,
        normalized_embeds=False,
        clip_crop_size=args.head_size,
        recognition_crop="dlib",
        recognition_crop_size=CROP_SIZE,
    )
    with ShardWriter(args.work_dir / args.output / args.split, settings) as writer:
        for path in shard_paths(args.work_dir, args.split):
            if not embedding_path(args.work_dir, path).exists():
                continue
            shard, embeddings = Shard.load(path), np.load(embedding_path(args.work_dir, path))
            for number, person in enumerate(shard.people):
                for view, embedding in enumerate(embeddings[number]):
                    source = f"{person:06d}-{view}"
                    if source in writer:
                        continue
                    rng = np.random.default_rng((SEED, 3, int(person), view))
                    info = {
                        "identity": str(person),
                        "caption": scene_caption(shard.attributes[number][view], rng),
                        "image_format": "png",
                    }
                    face = make_face(
                        shard.images[number, view],
                        shard.landmarks[number, view] + TO_PACKAGE,
                        embedding,
                        predictor,
                        settings,
                        info=info,
                    )
                    writer.add(face, source)
        print(f"{writer.count} pictures in {writer.folder}")


if __name__ == "__main__":
    main()
