"""A small FFRNet from the full one of an adapter: cut to a rank, then trained on to give what the full one gives.

    python small_ffrnet.py cut ADAPTER --rank 24 --output cut-24       # by singular values, a second
    python small_ffrnet.py record ADAPTER --output teacher.pt          # what the full one gives, in samples of four steps
    python small_ffrnet.py train cut-24 --teacher teacher.pt --output small-24

in the work directory, which has `export` and `head-shards/train` (see README.md). No true picture is looked at. The error is that of
FFRNet's residuals, each channel by how much it moves what the base model predicts.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from lr_scheduler import learning_rate
from precision import mixed_precision
from torch.utils.data import DataLoader

from facesnap_diffusers import FFRNet
from facesnap_diffusers.training.samples import collate
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import load_config


STEPS = 4  # that the nano adapter is sampled in
BATCH = 16
AVERAGE = 0.98


def load_unet(base: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(base / "unet", dtype=torch.float32).requires_grad_(False)


def cut(adapter: Path, base: Path, rank: int, output: Path) -> None:
    full = FFRNet.from_pretrained(adapter / "ffrnet", dtype=torch.float32)
    small, loss = FFRNet.from_controlnet(full, load_unet(base), rank)
    write_adapter(adapter, small, output)
    sizes = f"{small.num_parameters():,} of {full.num_parameters():,} parameters"
    print(f"{output}: {sizes}; {loss}")


def write_adapter(adapter: Path, ffrnet: FFRNet, output: Path) -> None:
    """A copy of an adapter with another FFRNet."""
    shutil.copytree(adapter, output, ignore=shutil.ignore_patterns("ffrnet"), dirs_exist_ok=True)
    ffrnet.save_pretrained(output / "ffrnet")


def record(adapter: Path, base: Path, pictures: int, output: Path) -> None:
    """Inputs and residuals of the full FFRNet at every step of samples, and the weights of the residuals' channels."""
    config = load_config(
        Path(__file__).parent / "head.yaml",
        [
            f"base.model={base}",
            f"adapter.start_from={adapter}",
            "adapter.train=[ffrnet]",
            "data.crops=null",
            "data.validation=[]",
            "identity_loss.weight=0",
            "loss.extra=null",
            "dropout={text: 0.03, identity: 0.03, both: 0.03, landmarks: 0}",
            f"output_dir={output.with_suffix('')}",  # nothing is written there
        ],
    )
    trainer = Trainer(config)
    objective, schedule = trainer.objective, trainer.objective.noise_schedule
    unet, ffrnet = objective.pipeline.unet, objective.pipeline.ffrnet.requires_grad_(False)
    attention = objective.pipeline.identity_attention
    timesteps = (torch.arange(STEPS, 0, -1) * len(schedule) / STEPS).round().long() - 1
    calls, weights, start = [], [], time.time()
    order = [range(first, first + BATCH) for first in range(0, pictures - BATCH + 1, BATCH)]
    for number, batch in enumerate(DataLoader(trainer.samples, batch_sampler=order, collate_fn=collate)):
        with torch.no_grad():
            conditions = objective.encode_conditions(batch)
        noisy, tokens, image = batch["noise"], conditions["identity_tokens"], objective.landmark_picture(batch)
        context = torch.cat([conditions["text_embeds"], tokens], 1)
        for step, timestep in enumerate(timesteps):
            now = timestep.expand(BATCH)
            with torch.no_grad(), mixed_precision("cpu"):
                down, mid = ffrnet(noisy, now, tokens, image, return_dict=False)
            residuals = [residual.float() for residual in [*down, mid]]
            weighed = number < 2  # batches suffice, and the gradient takes time
            for residual in residuals:
                residual.requires_grad_(weighed)
            with torch.set_grad_enabled(weighed), mixed_precision("cpu"):
                *down, mid = residuals
                predicted = unet(
                    noisy,
                    now,
                    context,
                    cross_attention_kwargs=attention.context(unet, tokens.shape[1]).as_kwargs(),
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=mid,
                ).sample.float()
            if weighed:
                gradients = torch.autograd.grad((predicted * torch.randn_like(predicted)).sum(), residuals)
                weights.append([gradient.square().mean((0, 2, 3), keepdim=True) for gradient in gradients])
            predicted = predicted.detach()
            calls.append([noisy, now, tokens, image.half(), *(residual.detach().half() for residual in residuals)])
            if step + 1 < STEPS:
                clean, noise = schedule.clean(noisy, predicted, now), schedule.noise(noisy, predicted, now)
                noisy = schedule.add_noise(clean, noise, timesteps[step + 1].expand(BATCH))
        print(f"{(number + 1) * BATCH} pictures, {time.time() - start:.0f} s", flush=True)
    mean_weights = [torch.stack(of_steps).mean(0) for of_steps in zip(*weights)]
    torch.save({"calls": [torch.cat(tensors) for tensors in zip(*calls)], "weights": mean_weights}, output)


def train(
    adapter: Path, base: Path, teacher: Path, steps: int, peak: float, output: Path, log_every: int = 50
) -> None:
    ffrnet, unet = FFRNet.from_pretrained(adapter / "ffrnet", dtype=torch.float32), load_unet(base)
    ffrnet.bind(unet)
    for model in (ffrnet, unet):
        model.to(memory_format=torch.channels_last)  # on CPUs a fifth faster, and bfloat16 would be slower
    recorded = torch.load(teacher, mmap=True)
    calls, weights = recorded["calls"], recorded["weights"]
    held_out = torch.arange(len(calls[0]) - 8 * BATCH, len(calls[0]))  # pairs of the last pictures
    optimizer = torch.optim.AdamW(ffrnet.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    average = torch.optim.swa_utils.AveragedModel(
        torch.nn.ParameterList(ffrnet.parameters()), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE)
    )
    torch.manual_seed(0)

    def error(chosen: torch.Tensor) -> torch.Tensor:
        """Of the weighted residuals, relative to their size."""
        sample, timestep, tokens, image, *wanted = (tensor[chosen] for tensor in calls)
        down, mid = ffrnet(sample, timestep, tokens, image.float(), return_dict=False)
        pairs = list(zip([*down, mid], wanted, weights, strict=True))
        difference = sum((weight * (given.float() - goal.float()).square()).sum() for given, goal, weight in pairs)
        return difference / sum((weight * goal.float().square()).sum() for _, goal, weight in pairs)

    start, mean = time.time(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, step, steps, warmup=20, fall=0.7)
        loss = error(torch.randint(len(calls[0]) - len(held_out), (BATCH,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(torch.nn.ParameterList(ffrnet.parameters()))
        mean += loss.item() / log_every
        if (step + 1) % log_every == 0 or step == 0 or step + 1 == steps:
            plain = [parameter.detach().clone() for parameter in ffrnet.parameters()]
            with torch.no_grad():
                for parameter, averaged in zip(ffrnet.parameters(), average.module, strict=True):
                    parameter.copy_(averaged)
                found = torch.stack([error(part) for part in held_out.split(BATCH)]).mean().item()
                write_adapter(adapter, ffrnet, output)
                for parameter, value in zip(ffrnet.parameters(), plain, strict=True):
                    parameter.copy_(value)
            seconds = time.time() - start
            print(f"step {step + 1}: error {mean:.4f}, averaged and held out {found:.4f}, {seconds:.0f} s", flush=True)
            mean = 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cut", "record", "train"):
        command = commands.add_parser(name)
        command.add_argument("adapter", type=Path)
        command.add_argument("--base", type=Path, default=Path("export"), help="default: %(default)s")
        command.add_argument("--output", type=Path, required=True)
    commands.choices["cut"].add_argument("--rank", type=int, default=24)
    commands.choices["record"].add_argument("--pictures", type=int, default=640)
    commands.choices["train"].add_argument("--teacher", type=Path, default=Path("teacher.pt"))
    commands.choices["train"].add_argument("--steps", type=int, default=1000)
    commands.choices["train"].add_argument("--peak", type=float, default=1e-3, help="learning rate")
    arguments = vars(parser.parse_args())
    {"cut": cut, "record": record, "train": train}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
