"""
What a call costs besides its nets: its time with all forward passes of UNet, FFRNet, VAE and encoders taken off, on UNets
with as many layers as SD 1.5 (16 cross-attentions) and SDXL (70) and few channels. With `--against`, the same for another
commit of this repository, in turns, and the ratio of the two.

    python benchmarks/call_overhead.py --against 0c0eb07
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SD_UNET = {
    "block_out_channels": (32, 32, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
XL_UNET = {
    "block_out_channels": (32, 32, 32),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (2, 4, 4),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "use_linear_projection": True,
    "cross_attention_dim": 64,
}


def measure(root: Path, calls: int) -> None:
    """Prints the seconds of each call besides its nets, by base and kind, as JSON."""
    sys.path[:0] = [str(root / "src"), str(root / "tests")]
    import tiny
    import torch

    torch.set_num_threads(1)
    results = {}
    for base, sizes in (("sd", SD_UNET), ("sdxl", XL_UNET)):
        stock = tiny.sd_pipeline() if base == "sd" else tiny.xl_pipeline()
        torch.manual_seed(0)
        stock.register_modules(unet=tiny.sd_unet(**sizes).eval())
        pipe = tiny.facesnap(stock)
        tiny.add_adapter(pipe)
        spent = [0.0]
        nets = [pipe.unet, pipe.ffrnet, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
        passes = [*((net, "forward") for net in nets if net is not None), (pipe.vae, "decode")]
        if hasattr(
            pipe.ffrnet, "embed_landmarks"
        ):  # a part of FFRNet's forward pass in commits that have no such method
            passes.append((pipe.ffrnet, "embed_landmarks"))
        for owner, name in passes:
            setattr(owner, name, _timed(getattr(owner, name), spent))
        for kind, face in (("plain", {}), ("face", {"identity": tiny.identity()})):
            seconds = []
            for number in range(calls + 2):
                spent[0], start = 0.0, time.process_time()
                pipe("a cat", num_inference_steps=1, height=32, width=32, output_type="pt", **face)
                if number >= 2:
                    seconds.append(time.process_time() - start - spent[0])
            results[f"{base} {kind}"] = seconds
    print(json.dumps(results))


def _timed(function, spent):
    def timed(*args, **kwargs):
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.process_time() - start

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit to compare with")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        measure(options.measure, options.calls)
        return
    with tempfile.TemporaryDirectory() as folder:
        roots = {"this": ROOT}
        if options.against:
            roots[options.against] = Path(folder) / "other"
            archive = subprocess.run(["git", "archive", options.against], cwd=ROOT, check=True, capture_output=True)
            roots[options.against].mkdir()
            subprocess.run(["tar", "-x", "-C", roots[options.against]], input=archive.stdout, check=True)
        seconds: dict[str, dict[str, list[float]]] = {name: {} for name in roots}
        for _ in range(options.rounds):
            for name, root in roots.items():
                command = [sys.executable, __file__, "--measure", str(root), "--calls", str(options.calls)]
                environment = {**os.environ, "PYTHONPATH": str(root / "src")}
                output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
                for case, values in json.loads(output.splitlines()[-1]).items():
                    seconds[name].setdefault(case, []).extend(values)
    for case in seconds["this"]:
        medians = {name: 1000 * statistics.median(values[case]) for name, values in seconds.items()}
        line = ", ".join(f"{name} {value:.1f} ms" for name, value in medians.items())
        ratio = f", ratio {medians['this'] / medians[options.against]:.2f}" if options.against else ""
        print(f"{case}: {line}{ratio}")


if __name__ == "__main__":
    main()
