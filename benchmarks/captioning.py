"""
Processor time of a caption of twelve tokens by a model of BLIP-base's size, with random weights, on one core.

    OMP_NUM_THREADS=1 python benchmarks/captioning.py
"""

import statistics
import time

import torch
from transformers import BlipConfig, BlipForConditionalGeneration


def main(side: int = 384, tokens: int = 12, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    model = BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": side})).eval()
    pixels = torch.randn(1, 3, side, side)
    seconds = []
    for _ in range(rounds + 1):
        start = time.process_time()
        with torch.no_grad():
            model.generate(pixel_values=pixels, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens)
        seconds.append(time.process_time() - start)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.0f} M parameters: {statistics.median(seconds[1:]):.1f} s a caption of {tokens} tokens")


if __name__ == "__main__":
    main()
