"""``demo``: the main job on the embedded checkpoint: calibrate, quantize three ways, evaluate, print the table."""

from __future__ import annotations

from typing import Any

import click

from core import jobs
from core.store import Store
from workbench.cli.evaluate import show_runs
from workbench.cli.launch import outcome, watch
from workbench.cli.session import Session, device_option, json_option, print_json

VARIANTS = (("int4-minmax", 128), ("int4-awq", 128), ("int4-awq", 64))
"""Recipe and group of each variant that the demo makes."""

SUBSET = {"demo-x2t": 54, "demo-t2i": 8}
"""Samples of each suite, every kind of question twice; ``--full`` runs all of them."""

CALIBRATION_SAMPLES = 14
"""Of each task; every other kind of question is among them."""


def submit_chain(store: Store, *, full: bool, device: str) -> list[int]:
    """Queue the demo's jobs; their ids, in the order they will run."""
    from core.demo import NAME

    calibration = f"{NAME}_demo"
    suites: dict[str, Any] = {"suites": list(SUBSET), "limit": None if full else SUBSET, "device": device}
    calibrate = jobs.submit(
        store,
        "calibrate",
        {"checkpoint": NAME, "name": calibration, "samples": CALIBRATION_SAMPLES, "device": device},
    )
    made: list[tuple[str, int]] = []
    for recipe, group in VARIANTS:
        spec = {
            "checkpoint": NAME,
            "recipe": recipe,
            "group": group,
            "calibration": calibration,
            "device": device,
        }
        made.append((f"{NAME}_{recipe}-g{group}", jobs.submit(store, "quantize", spec, depends_on=calibrate)))
    # The bf16 run is made anew: it is what the variants of this demo are compared with.
    base = jobs.submit(store, "evaluate", {"checkpoint": NAME, "baseline": None} | suites)
    evaluated = [
        jobs.submit(
            store, "evaluate", {"checkpoint": name, "baseline": "auto"} | suites, depends_on=[quantize, base]
        )
        for name, quantize in made
    ]
    return [calibrate, *(quantize for _, quantize in made), base, *evaluated]


@click.command()
@click.option("--full", is_flag=True, help="Whole suites: 200 questions and 50 prompts in place of a subset.")
@device_option
@json_option
@click.pass_context
def command(ctx: click.Context, full: bool, device: str, as_json: bool) -> None:
    """Run the main job on the embedded checkpoint and print its table.

    Calibrates the embedded, trained Lance, quantizes it three ways, evaluates bf16 and every variant on questions
    about drawn pictures and on drawing from text, and records all of it in the database, which the app then opens
    on. Needs no network and no GPU.
    """
    session: Session = ctx.obj
    store = session.open(create=True)
    chain = submit_chain(store, full=full, device=device)
    jobs.ensure_supervisor(store)
    runs: list[int] = []
    try:
        for job_id in chain:
            row = watch(store, job_id, cancel_on_interrupt=True)
            outcome(row)
            runs += (row["result"] or {}).get("runs", [])
    except KeyboardInterrupt:
        for job_id in chain:
            if jobs.job(store, job_id)["state"] not in jobs.FINISHED:
                jobs.cancel(store, job_id)
        raise
    if as_json:
        print_json({"jobs": chain, "runs": [store.run(run_id) for run_id in runs]})
        return
    show_runs(store, runs)
    click.echo("\nOpen the app on these results: lance-workbench", err=True)
