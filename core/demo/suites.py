"""The demo's held-out suites: ``python -m core.demo.suites`` writes the files beside ``demo-x2t.json``.

Every kind of question comes equally often and kinds alternate, so that a suite's first samples are a fair subset of it.
Seeds lie from ``HELD_OUT`` on, which training never draws from. The suites of the tasks that the embedded Lance was not
trained for are few samples each, made small to be quick: on them a variant is compared with bf16, and nothing else.
"""

from __future__ import annotations

import json
import math
from typing import Any

from core.demo import SUITES
from core.demo.captions import caption
from core.demo.drawing import HELD_OUT, KINDS, draw
from core.demo.moving import FRAMES, MOVES, instruction, moving
from core.files import write_text

QUESTIONS = 200
PROMPTS = 50
FEW = 3
FEW_STEPS = 6
_STRIDE = 8


def questions() -> dict[str, Any]:
    """The suite of questions; neighbours are of different families."""
    assert math.gcd(_STRIDE, len(KINDS)) == 1, "the stride must visit every kind"
    samples = []
    for number in range(QUESTIONS):
        kind, seed = KINDS[number * _STRIDE % len(KINDS)], HELD_OUT + number
        drawn = draw(kind, seed)
        samples.append(
            {"key": f"{number:03d}-{kind}", "kind": kind, "seed": seed, "question": drawn.question,
             "expected": drawn.answer}
        )  # fmt: skip
    settings = {"resolution": "image_256res"}
    return {"name": "demo-x2t", "task": "x2t_image", "settings": settings, "samples": samples}


def prompts() -> dict[str, Any]:
    """The suite of captions, each with its own starting noise."""
    samples = []
    for number in range(PROMPTS):
        drawn = caption(HELD_OUT + number)
        samples.append(
            {"key": f"{number:03d}-{drawn.colour}-{drawn.shape}", "prompt": drawn.prompt, "shape": drawn.shape,
             "colour": drawn.colour, "seed": number}
        )  # fmt: skip
    settings = {
        "height": 96, "width": 96, "num_steps": 30, "timestep_shift": 3.5, "cfg_text_scale": 4.0,
    }  # fmt: skip
    return {"name": "demo-t2i", "task": "t2i", "settings": settings, "samples": samples}


def untrained(
    name: str, task: str, settings: dict[str, Any], samples: list[dict[str, Any]]
) -> dict[str, Any]:
    """A suite of a task that the embedded Lance was not trained for, which its description says."""
    description = (
        f"The embedded Lance was not trained for {task}: what is scored is whether a variant does what bf16 does, "
        "not whether it is good."
    )
    return {
        "name": name, "task": task, "description": description, "settings": settings, "samples": samples,
    }  # fmt: skip


def clip_questions() -> dict[str, Any]:
    """Questions about clips of a moving shape."""
    samples = [
        {"key": f"{number:03d}", "drawing": HELD_OUT + number, "question": moving(HELD_OUT + number).question}
        for number in range(FEW)
    ]
    return untrained(
        "demo-x2t-video", "x2t_video", {"resolution": "video_192p", "max_new_tokens": 32}, samples
    )


def clip_prompts() -> dict[str, Any]:
    """Clips to make from text."""
    samples = [
        {"key": f"{number:03d}", "prompt": moving(HELD_OUT + number).prompt, "seed": number}
        for number in range(FEW)
    ]
    settings = {"height": 96, "width": 96, "num_frames": FRAMES, "num_steps": FEW_STEPS}
    return untrained("demo-t2v", "t2v", settings, samples)


def first_frames() -> dict[str, Any]:
    """Drawn pictures to set in motion."""
    samples = [
        {"key": f"{number:03d}", "prompt": f"the shape moves {move}", "seed": number, "drawing": HELD_OUT + number}
        for number, move in zip(range(FEW), MOVES, strict=False)
    ]  # fmt: skip
    settings = {"resolution": "video_192p", "num_frames": FRAMES, "num_steps": FEW_STEPS}
    return untrained("demo-i2v", "i2v", settings, samples)


def edits(task: str, resolution: str) -> dict[str, Any]:
    """Drawn pictures or clips to change."""
    samples = [
        {"key": f"{number:03d}", "prompt": instruction(HELD_OUT + number), "seed": number,
         "drawing": HELD_OUT + number}
        for number in range(FEW)
    ]  # fmt: skip
    settings = {"resolution": resolution, "num_steps": FEW_STEPS}
    return untrained(f"demo-{task.replace('_', '-')}", task, settings, samples)


def main() -> None:
    """Write all suites."""
    few = (clip_questions(), clip_prompts(), first_frames())
    edited = (edits("image_edit", "image_256res"), edits("video_edit", "video_192p"))
    for suite in (questions(), prompts(), *few, *edited):
        write_text(SUITES / f"{suite['name']}.json", json.dumps(suite, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
