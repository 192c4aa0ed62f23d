"""When identity attention and FFRNet work in the course of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field

from ..errors import InputError, shown
from ..settings import strict_dataclass


Share = Annotated[float, Field(ge=0, le=1)]

#: Runs of so few steps compute FFRNet at each of them: between two steps the picture changes too much.
FEW_STEPS = 8


@strict_dataclass(frozen=True)
class FaceSnapSchedule:
    r"""
    When the parts of an adapter work in a call. `"exact"` is the default values: everything, always. `"fast"` is
    `FaceSnapSchedule(landmark_interval=0.2, landmarks_on_unconditional=False)`: landmarks do not change from step to step, so
    FFRNet need not be computed at each.

    Attributes:
        identity_start (`float`), identity_end (`float`): From which share of the steps to which identity attention works: in
            those that lie between the two as a whole, as `control_guidance_start` and `control_guidance_end` of ControlNets;
            steps that `denoising_end` leaves out count, too.
        landmark_start (`float`), landmark_end (`float`): The same for FFRNet; further ControlNets have their own.
        landmark_interval (`float`): Share of the noise schedule after which FFRNet is computed anew; in between its last
            residuals are used again. 0 computes it at every step. In the first such interval, where an image takes its
            shape, and in runs of up to 8 steps, it is computed at every step.
        landmarks_on_unconditional (`bool`): Whether FFRNet also works in the unconditional half of classifier-free
            guidance. Without, guidance strengthens what the landmarks say too.
    """

    identity_start: Share = 0.0
    identity_end: Share = 1.0
    landmark_start: Share = 0.0
    landmark_end: Share = 1.0
    landmark_interval: Share = 0.0
    landmarks_on_unconditional: bool = True

    def __post_init__(self) -> None:
        for part in ("identity", "landmark"):
            if getattr(self, f"{part}_start") >= getattr(self, f"{part}_end"):
                raise InputError(f"{part}_start must be smaller than {part}_end")

    @classmethod
    def of(cls, schedule: str | FaceSnapSchedule) -> FaceSnapSchedule:
        """A schedule from `"exact"`, `"fast"` or itself."""
        if isinstance(schedule, cls):
            return schedule
        if isinstance(schedule, str) and schedule in SCHEDULES:
            return SCHEDULES[schedule]
        raise InputError(
            f"schedule must be one of {', '.join(SCHEDULES)} or a FaceSnapSchedule, got {shown(schedule)}"
        )


SCHEDULES = {
    "exact": FaceSnapSchedule(),
    "fast": FaceSnapSchedule(landmark_interval=0.2, landmarks_on_unconditional=False),
}


class CallProgress:
    r"""
    How far one call is. The stock pipelines call their ControlNets once in each round of the denoising loop, before the
    UNet; that is when [`advance`] is called.

    Args:
        scheduler: The call's own; it knows its timesteps once the loop runs.
        on_step (`Callable`): Called at the beginning of each round with the shares of the rounds that are done before it and
            after it.
        denoising_end (`float`, *optional*): The share of the noise schedule after which the call leaves the rest to another
            pipeline.
    """

    def __init__(self, scheduler: Any, on_step: Callable[[float, float], None], denoising_end: float | None = None):
        self.scheduler = scheduler
        self.on_step = on_step
        self.denoising_end = denoising_end
        self.rounds = 0
        self.first_timestep: float | None = None

    def advance(self, timestep: torch.Tensor | float) -> None:
        """Begins the next round, at `timestep`."""
        if self.first_timestep is None:
            self.first_timestep = float(timestep)
        self.on_step(self.rounds / self.num_rounds, (self.rounds + 1) / self.num_rounds)
        self.rounds += 1

    # both once a run: the timesteps may be on a GPU, which each look at them would wait for
    @cached_property
    def num_rounds(self) -> int:
        """Rounds of the whole run: image-to-image begins in the midst of the scheduler's timesteps."""
        return int((self.scheduler.timesteps <= self.first_timestep).sum())

    @cached_property
    def num_steps(self) -> int:
        """Steps that are made, as the caller counts them: second-order samplers and PNDM take several rounds for one."""
        timesteps = self.scheduler.timesteps
        asked_for = getattr(self.scheduler, "num_inference_steps", None) or len(timesteps)
        # as the stock pipelines cut them
        all_timesteps = self.scheduler.config.num_train_timesteps
        last = 0 if self.denoising_end is None else round(all_timesteps - self.denoising_end * all_timesteps)
        rounds = int(((timesteps <= self.first_timestep) & (timesteps >= last)).sum())
        return round(asked_for * rounds / len(timesteps))

    def time(self, timestep: torch.Tensor | float) -> float:
        """The share of the noise that the run began with which is gone at `timestep`, from 0 to 1."""
        return 1 - float(timestep) / self.first_timestep if self.first_timestep else 0.0
