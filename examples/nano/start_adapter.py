"""The adapter that training starts from: a mixer that already says in tokens what a caption would say of the person.

    python start_adapter.py --output adapters/start

The identity attention starts as a copy of the text attention, which understands the text encoder's states. So the mixer
first learns, in minutes, to imitate the states of the person's part of a caption; what words cannot say is left to
`facesnap train`, with `adapter.start_from` set to the folder that this writes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from base_model import IMAGE_SIZE
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import embedding_path
from lr_scheduler import learning_rate
from people.captions import OPENING, person_clauses
from precision import mixed_precision
from train_image_encoder import SIZE as HEAD_SIZE
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

import facesnap_diffusers.nano.autoencoder  # noqa: F401  (diffusers looks its class up there)
from facesnap_diffusers import DlibFaceAnalyzer, FaceSnapConfig, FaceSnapPipeline
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.faces.drawing import draw_landmarks
from facesnap_diffusers.models.ffrnet import FFRNet
from facesnap_diffusers.models.image_encoder import image_hidden_states
from facesnap_diffusers.models.mixer import FacialAttributeMixer


NUM_TOKENS = 16
FIRST_WORD = 5  # of the person's part, after the start token and "a photo of a"
MIXER = {"hidden_size": 128, "num_layers": 2, "attention_head_dim": 32, "num_face_tokens": 4}
FEATURES = {"id": (True, False), "clip": (False, True), "both": (True, True)}
BATCH, LEARNING_RATE = 64, 1e-3


class People:
    """Embeddings, hidden states of the image encoder and the person's part of a caption, of the embedded views."""

    def __init__(self, work_dir: Path, split: str, encoder, processor):
        embeddings, states, self.captions = [], [], []
        for path in shard_paths(work_dir, split):
            if not embedding_path(work_dir, path).exists():
                continue
            shard, shard_embeddings = Shard.load(path), np.load(embedding_path(work_dir, path))
            embeddings.append(shard_embeddings)
            for number in range(len(shard_embeddings)):
                views = zip(shard.images[number, : shard_embeddings.shape[1]], shard.landmarks[number])
                heads = [align_for_clip(image, points + TO_PACKAGE, HEAD_SIZE) for image, points in views]
                pixels = processor(heads, return_tensors="pt").pixel_values
                with torch.no_grad():
                    states.append(image_hidden_states(encoder, pixels).half())
                clauses = person_clauses(shard.attributes[number][0])
                self.captions.append(", ".join([f"{OPENING} with {clauses[0]}", *clauses[1:]]))
        self.embeddings = torch.from_numpy(np.concatenate(embeddings))
        self.states = torch.stack(states)

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        people, views = rng.integers(len(self.captions), size=size), rng.integers(self.states.shape[1], size=size)
        captions = [self.captions[k] for k in people]
        return self.embeddings[people, views], self.states[people, views].float(), captions


@torch.no_grad()
def whiten_face_projection(mixer: FacialAttributeMixer, embeddings: torch.Tensor):
    """dlib's embeddings differ little from their common mean: what a random projection sees of them is made to vary."""
    flat = embeddings.flatten(0, -2)
    projected = mixer.face_proj(flat)
    mixer.face_proj.weight /= (projected - projected.mean(0)).std()
    mixer.face_proj.bias.copy_(-(flat.mean(0) @ mixer.face_proj.weight.T))


@torch.no_grad()
def wake_landmarks(ffrnet: FFRNet, landmark_images: torch.Tensor):
    """
    Scales each layer of the landmarks' embedding so that what landmark images make of it varies by one.

    A ControlNet's embedding as it is initialised passes next to nothing of a few bright dots on black, and ends in zeros:
    a thousand steps do not wake it. That the last layers of all are zero suffices for a start that changes nothing.
    """
    embedding = ffrnet.controlnet_cond_embedding
    states = landmark_images
    for layer in [embedding.conv_in, *embedding.blocks, embedding.conv_out]:
        torch.nn.init.kaiming_normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        layer.weight /= layer(states).std()
        states = torch.nn.functional.silu(layer(states))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--output", type=Path, default=Path("adapters/start"), help="under the work directory")
    parser.add_argument("--features", choices=list(FEATURES), default="both", help="what the mixer sees")
    parser.add_argument(
        "--without-ffrnet", action="store_true", help="mixer and identity attention only, as IP-Adapter"
    )
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = args.work_dir / "clip/image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    processor = CLIPImageProcessor.from_pretrained(folder)
    train, held_out = (People(args.work_dir, split, encoder, processor) for split in ("train", "validation"))

    pipe = FaceSnapPipeline.from_pretrained(args.work_dir / "export", dtype=torch.float32)
    sees_face, sees_image = FEATURES[args.features]
    config = FaceSnapConfig(
        face_encoder_id=DlibFaceAnalyzer.encoder,
        face_embed_dim=train.embeddings.shape[-1] if sees_face else None,
        image_encoder_id="image_encoder" if sees_image else None,
        normalized_embeds=False,
        num_tokens=NUM_TOKENS,
        parts=["mixer", "identity_attention"] if args.without_ffrnet else ["mixer", "ffrnet", "identity_attention"],
        license="apache-2.0",
    )
    image_parts = {"image_encoder": encoder, "image_processor": processor} if sees_image else {}
    pipe.init_facesnap_adapter(config, mixer={**MIXER, "face_shortcut": sees_face}, **image_parts)
    if not args.without_ffrnet:
        # a landmark image of 128 px needs no more channels than these
        pipe.ffrnet = FFRNet.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32, 64))
        points = torch.from_numpy(Shard.load(shard_paths(args.work_dir, "train")[0]).landmarks[:, 0] + TO_PACKAGE)
        wake_landmarks(pipe.ffrnet, draw_landmarks(points, IMAGE_SIZE, IMAGE_SIZE))
    if sees_face:
        whiten_face_projection(pipe.mixer, train.embeddings)

    optimizer = torch.optim.AdamW(pipe.mixer.parameters(), LEARNING_RATE, weight_decay=1e-2)
    started = time.time()

    def imitation(people: People, rng: np.random.Generator) -> torch.Tensor:
        embeddings, states, captions = people.batch(BATCH, rng)
        with torch.no_grad():
            prompt = pipe.encode_prompt(captions, torch.device("cpu"), 1, False)[0]
            target = prompt[:, FIRST_WORD : FIRST_WORD + NUM_TOKENS]
        with mixed_precision():
            tokens = pipe.mixer(embeddings if sees_face else None, states if sees_image else None).float()
        return (tokens - target).square().mean()

    pipe.mixer.requires_grad_(True).train()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(LEARNING_RATE, step, args.steps)
        loss = imitation(train, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                held_out_loss = np.mean([imitation(held_out, np.random.default_rng(k)).item() for k in range(4)])
            print(
                f"step {step}: loss {loss:.4f}, held out {held_out_loss:.4f}, {time.time() - started:.0f} s",
                flush=True,
            )
    pipe.save_facesnap_adapter(args.work_dir / args.output)


if __name__ == "__main__":
    main()
