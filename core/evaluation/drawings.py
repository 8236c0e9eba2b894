"""Examining generation: a picture or clip made, scored against bf16's from the same noise and against the prompt.

Of a clip evenly spaced frames are kept and scored, beside each other as one picture (``media.add_frames``).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from core.demo.recognise import recognise
from core.errors import CheckpointError
from core.evaluation import image_scores, media, requests, statistics, trajectory
from core.evaluation.baseline import TRAJECTORY, Baseline
from core.evaluation.samples import Sample, Settings
from core.lance import tasks
from core.lance.loading import Pipeline
from core.lance.sampler import Sampling
from core.lance.tasks import Scene
from core.store import Store


def sampling(settings: Settings) -> Sampling:
    """The sampler of ``settings``.

    Raises:
        UsageError: no steps, or a shift that is not positive.
    """
    return Sampling(settings.num_steps, settings.timestep_shift, settings.cfg_text_scale)


class DrawingExaminer:
    """Runs samples of a task that draws one after the other and gathers their scores.

    Without a baseline only the prompt's shape and colour are looked for, and the sampler's way is kept for
    others to be scored against.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, store: Store, baseline: Baseline | None, *, keep: bool
    ) -> None:
        self.pipeline = pipeline
        _ = pipeline.vae  # read now: a missing one is told before anything is recorded
        self.settings = settings
        self.sampling = sampling(settings)
        self.store = store
        self.baseline = baseline
        self.reference = trajectory.TrajectoryFile(baseline.artifact) if baseline else None
        self.keep = keep
        self.kept: dict[int, trajectory.Trajectory] = {}
        self.images: list[image_scores.ImageScores] = []
        self.velocities: list[float] = []
        self.recognised: list[bool] = []
        self.seconds: list[float] = []

    def examine(self, index: int, sample: Sample) -> dict[str, Any]:
        """Draw and score one sample; the columns of its output."""
        asked = requests.request(sample, self.settings)
        started = time.perf_counter()
        scene = requests.scene(self.pipeline, asked)
        drawn = tasks.generate(self.pipeline, scene, self.sampling, trace=self.keep)
        seconds = time.perf_counter() - started
        images = drawn.images()
        if not drawn.latents.isfinite().all():
            raise CheckpointError(f"{self.pipeline.folder}: gives latents that are no numbers; verify it")
        self.seconds.append(seconds)
        fields: dict[str, Any] = {
            "question": sample.prompt,
            "input_media": media.add_preview(self.store, asked.visuals if asked else []),
            "output_media": media.add_frames(self.store, images),
            "seconds": seconds,
        }
        if sample.shape and sample.colour:
            fields["expected"] = f"{sample.colour} {sample.shape}"
            shape, colour = recognise(images[0])
            self.recognised.append((shape, colour) == (sample.shape, sample.colour))
            fields["text"] = f"{colour} {shape}"
            fields["pixel"] = float(self.recognised[-1])
        if self.baseline is not None and self.reference is not None:
            theirs = media.picture(self.store, self.baseline.output(index, sample)["output_media"])
            scores = image_scores.score(theirs, media.sheet(images))
            self.images.append(scores)
            self.velocities.append(self._velocity_error(scene, self.reference.get(index)))
            fields |= {
                "psnr": scores.psnr,
                "mae": scores.mae,
                "cosine": scores.cosine,
                "velocity": self.velocities[-1],
            }
        if drawn.trace is not None:
            times, latents = trajectory.points(drawn.trace)
            velocities = self._velocities(scene, times, latents)
            self.kept[index] = trajectory.Trajectory(times, latents, velocities)
        return fields

    @torch.inference_mode()
    def _velocities(self, scene: Scene, times: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """This model's conditional velocities float32 [S, K', 48] at x_t [S, K, 48] and times [S], of the tokens
        that are not given (a first frame is).

        The baseline's are taken this way too and not from its sampler, which on a GPU batches the guidance
        passes and so rounds differently.
        """
        fixed = scene.drawing.fixed
        found = torch.stack(
            [
                scene.drawing.velocity(x.to(self.pipeline.device), moment).float().cpu()
                for moment, x in zip(times.tolist(), latents, strict=True)
            ]
        )
        return found if fixed is None else found[:, ~fixed]

    def _velocity_error(self, scene: Scene, reference: trajectory.Trajectory) -> float:
        """Mean over the kept steps of the relative error of the velocity at the baseline's x_t."""
        mine = self._velocities(scene, reference.times, reference.latents)
        errors = map(trajectory.relative_error, reference.velocities, mine)
        return statistics.mean(list(errors)).value

    def scores(self) -> dict[str, float | None]:
        """The run's aggregate scores with their intervals."""
        result: dict[str, float | None] = {"seconds": statistics.mean(self.seconds).value}
        if self.recognised:
            pixel = statistics.wilson(sum(self.recognised), len(self.recognised))
            result |= {"pixel": pixel.value, "pixel_low": pixel.low, "pixel_high": pixel.high}
        if self.images:
            columns = {
                "psnr": [scores.psnr for scores in self.images],
                "mae": [scores.mae for scores in self.images],
                "cosine": [scores.cosine for scores in self.images],
                "velocity": self.velocities,
            }
            for name, values in columns.items():
                average = statistics.mean(values)
                result |= {name: average.value, f"{name}_se": average.error}
        return result

    def save(self, folder: Path) -> None:
        """Keep what others are scored against in ``folder``."""
        if self.keep:
            trajectory.save(folder / TRAJECTORY, self.kept)
