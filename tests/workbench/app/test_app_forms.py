"""The new-job form suits the checkpoint that is chosen, and refuses what does not fit it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from core import jobs
from core.calibration.record import CalibrationRecord
from core.store import Store
from workbench import job_form
from workbench.job_faults import faults

WIDTH, INNER = 64, 128
SHAPES = {
    "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,),
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}  # fmt: skip


@pytest.fixture
def causal_lm(tmp_path: Path) -> Path:
    """The files of a Llama of one layer."""
    folder = tmp_path / "small-llama"
    folder.mkdir()
    tensors = {
        f"model.layers.0.{name}.weight": numpy.zeros(shape, "float32") for name, shape in SHAPES.items()
    }
    for name, shape in (
        ("model.embed_tokens", (32, WIDTH)),
        ("model.norm", (WIDTH,)),
        ("lm_head", (32, WIDTH)),
    ):
        tensors[f"{name}.weight"] = numpy.zeros(shape, "float32")
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4, "hidden_size": WIDTH}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def register(database: Path, folder: Path) -> None:
    """Make the causal LM known, and a calibration of something else of the same name."""
    with Store.open(database) as store:
        store.register_checkpoint(
            name=folder.name, path=str(folder), kind="checkpoint", family="huggingface", size_bytes=1
        )
        for name, checkpoint in (("of-mini", "lance-mini"), ("of-llama", folder.name)):
            record = CalibrationRecord(
                name, checkpoint, "0" * 64, ["text"], [], "", 0, 1, "float32", {}, {}, ""
            )
            place = folder.parent / name
            place.mkdir()
            (place / "calibration.json").write_text(record.to_json())
            store.register_calibration(
                name=name, path=str(place), checkpoint=checkpoint, tasks=["text"], samples=1, tokens=1,
                fingerprint=record.fingerprint,
            )  # fmt: skip


async def test_the_form_suits_a_causal_lm_once_it_is_chosen(
    open_app: Any, database: Path, causal_lm: Path, submitted: list[Path]
) -> None:
    register(database, causal_lm)
    async with open_app(database) as screen:
        await screen.press("n")
        form = screen.app.screen
        assert form.prompts["tasks"].input.value == "x2t_image t2i"
        form.prompts["limit"].input.value = "7"
        form.prompts["checkpoint"].input.value = "small-llama"
        shown = " ".join((await screen.settle()).split())
        for line in ("calibrate on: text", "sequences: 128", "suites: text", "samples: 7"):
            assert line in shown
        known = {field.key: list(field.known) for field in form.fields}
        assert known["tasks"] == known["suites"] == ["text"] and known["calibration"] == ["of-llama"]
        # Its linears have 64 columns: no recipe of groups of 128, and no such group.
        assert "int4-awq" not in known["recipe"] and "int4-best" in known["recipe"]
        assert known["group"] == ["", "64", "32", "channel"]
        form.prompts["recipe"].input.value = "nvfp4"
        await screen.settle()
        assert next(field for field in form.fields if field.key == "group").known == [""]
        form.prompts["recipe"].input.value, form.prompts["group"].input.value = "int4-best", "channel"
        assert "started job 3 → 4 → 5" in await screen.press("ctrl+s")
        chain = [jobs.job(screen.app.store, number)["spec"] for number in (3, 4, 5)]
        assert (chain[0]["tasks"], chain[0]["samples"], chain[0]["suite"]) == (["text"], 128, None)
        assert chain[1]["group"] == "channel"
        assert (chain[2]["suites"], chain[2]["checkpoint"]) == (["text"], "small-llama_int4-best-channel")
        await screen.press("n")
        form = screen.app.screen
        form.prompts["checkpoint"].input.value = "small-llama"
        await screen.settle()
        form.prompts["checkpoint"].input.value = "lance-demo"
        await screen.settle()
        assert form.prompts["suites"].input.value == "demo-x2t"


@pytest.mark.parametrize(
    ("kind", "key", "value", "message"),
    [
        (
            "chain",
            "tasks",
            "x2t_image",
            "small-llama: is no Lance and is calibrated on text, not on x2t_image",
        ),
        ("evaluate", "suites", "demo-x2t", "small-llama: is no Lance and is evaluated on running text"),
        (
            "sensitivity",
            "measured_on",
            "demo-t2i",
            "demo-t2i: holds t2i samples; a causal LM is measured on text",
        ),
        ("sensitivity", "calibration", "", "sensitivity is measured on a calibration's rows"),
        ("quantize", "calibration", "", "recipe int4-best looks at activations: give it a calibration"),
        ("quantize", "calibration", "of-mini", "calibration of-mini: was taken from lance-mini"),
        ("quantize", "group", "48", "columns do not divide into groups of 48; choose a group of 32, 64"),
        ("quantize", "group", "rows", "wanted a whole number from 1 to 1,000,000, or channel"),
        ("quantize", "group", "²", "group: '²' found, wanted a whole number"),
        ("quantize", "group", "9" * 5000, "wanted a whole number from 1 to 1,000,000, or channel"),
        ("evaluate", "limit", "9" * 5000, "wanted a whole number from 1 to 1,000,000"),
        ("calibrate", "files", "gone.txt", "gone.txt: cannot be read"),
        ("export", "format", "gguf", "format: 'gguf' found, wanted one of huggingface, mlx, coreml"),
        ("export", "format", "huggingface", "small-llama: is a Hugging Face model already"),
        ("export", "output", __file__, "a file; choose another --output"),
    ],
)
def test_what_does_not_fit_a_checkpoint_is_refused(
    database: Path, causal_lm: Path, kind: str, key: str, value: str, message: str
) -> None:
    register(database, causal_lm)
    with Store.open(database) as store:
        fields = job_form.fields(store, "small-llama", job_form.look_at(store, "small-llama"))
        values = {field.key: field.default for field in fields if kind in field.kinds} | {"kind": kind}
        if "recipe" in values:
            values |= {"recipe": "int4-best"}
        assert key in values
        found = faults(store, values | {key: value}, key)
    assert len(found) == 1 and found[0].key == key and message in found[0].message


def test_a_variant_is_evaluated_and_nothing_else(database: Path, causal_lm: Path) -> None:
    config = json.loads((causal_lm / "config.json").read_text())
    (causal_lm / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    register(database, causal_lm)
    with Store.open(database) as store:
        about = job_form.look_at(store, "small-llama")
        fields = {field.key: field for field in job_form.fields(store, "small-llama", about)}
        assert fields["kind"].default == "evaluate" and fields["suites"].default == "text"
        for kind, words in (("quantize", "already a variant"), ("calibrate", "is a variant; calibrate")):
            values = {"kind": kind, "checkpoint": "small-llama"}
            assert words in faults(store, values, "checkpoint")[0].message


def test_a_sensitivity_is_asked_for_as_on_the_command_line(database: Path) -> None:
    with Store.open(database) as store:
        values = {"kind": "sensitivity", "checkpoint": "lance-demo", "recipe": "int4-best", "group": "channel",
                  "calibration": "mine", "measured_on": "", "limit": "4", "device": "cpu"}  # fmt: skip
        assert job_form.specs(store, values) == [
            (
                "sensitivity",
                {"checkpoint": "lance-demo", "recipe": "int4-best", "group": "channel", "calibration": "mine",
                 "suites": [], "limit": 4, "device": "cpu"},
            )
        ]  # fmt: skip


def test_the_form_is_about_what_is_under_the_cursor(database: Path, causal_lm: Path) -> None:
    register(database, causal_lm)
    with Store.open(database) as store:
        for subject, name in (
            ("small-llama", "small-llama"),
            (str(causal_lm), "small-llama"),
            ("gone", "lance-demo"),
        ):
            assert job_form.chosen(store, subject) == name
        assert job_form.chosen(store, None) == "lance-demo"


def test_paths_are_made_absolute_and_nothing_stays_nothing(database: Path, causal_lm: Path) -> None:
    (database.parent / "own.toml").write_text("")
    (database.parent / "words.txt").write_text("Words.")
    values = {"kind": "quantize", "checkpoint": str(causal_lm), "recipe": "own.toml", "group": "", "calibration": "",
              "device": "cpu"}  # fmt: skip
    with Store.open(database) as store:
        ((_, quantize),) = job_form.specs(store, values)
        wanted = {"kind": "evaluate", "checkpoint": str(causal_lm), "suites": "text text:words.txt", "limit": "",
                  "device": "cpu"}  # fmt: skip
        ((_, evaluate),) = job_form.specs(store, wanted)
    own = str(database.parent.resolve() / "own.toml")
    assert (quantize["recipe"], quantize["calibration"], quantize["group"]) == (own, None, None)
    assert evaluate["suites"] == ["text", f"text:{database.parent.resolve() / 'words.txt'}"]
    assert (evaluate["limit"], evaluate["baseline"]) == (None, "auto")


async def test_enter_in_any_field_of_an_unknown_kind_of_job_names_the_kind(
    open_app: Any, database: Path
) -> None:
    async with open_app(database) as screen:
        await screen.press("n", *"x")
        for _ in range(4):
            await screen.press("tab")
            shown = await screen.press("enter")
            assert "what: 'chainx' found, wanted one of chain, calibrate" in " ".join(shown.split())


async def test_an_export_asks_format_and_place_alone(
    open_app: Any, database: Path, submitted: list[Path], tmp_path: Path
) -> None:
    async with open_app(database) as screen:
        await screen.press("n")
        form = screen.app.screen
        form.prompts["kind"].input.value = "export"
        form.prompts["checkpoint"].input.value = "lance-demo"
        shown = " ".join((await screen.settle()).split())
        assert "format: huggingface" in shown and "output: beside the database" in shown
        assert "device:" not in shown and "recipe:" not in shown
        form.prompts["output"].input.value = str(tmp_path / "mine")
        assert "started job 3" in await screen.press("ctrl+s")
        job = jobs.job(screen.app.store, 3)
        assert job["kind"] == "export"
        assert job["spec"] == {
            "checkpoint": "lance-demo", "format": "huggingface", "output": str(tmp_path / "mine")
        }  # fmt: skip
