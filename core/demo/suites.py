"""The demo's held-out suites: ``python -m core.demo.suites`` writes ``demo-x2t.json`` and ``demo-t2i.json``.

Every kind of question comes equally often and kinds alternate, so that a suite's first samples are a fair subset of it.
Seeds lie from ``HELD_OUT`` on, which training never draws from.
"""

from __future__ import annotations

import json
import math
from typing import Any

from core.demo import SUITES
from core.demo.captions import caption
from core.demo.drawing import HELD_OUT, KINDS, draw
from core.files import write_text

QUESTIONS = 200
PROMPTS = 50
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


def main() -> None:
    """Write both suites."""
    for suite in (questions(), prompts()):
        write_text(SUITES / f"{suite['name']}.json", json.dumps(suite, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
