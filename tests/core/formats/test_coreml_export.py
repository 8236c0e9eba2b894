"""What stands in an exported package: the source's codes and weights, and a graph that answers as the source does."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.checkpoints.describe import describe
from core.checkpoints.layout import structure_of
from core.checkpoints.source import TensorSource
from core.demo import CHECKPOINT
from core.quantization.scheme import CHANNEL, NVFP4, Scheme

pytest.importorskip("coremltools", reason="needs the extra 'coreml'", exc_type=ImportError)

import numpy as np
import torch
from coreml_program import Runner, operations
from plain_variants import first_layers, write_causal, write_variant

from core.formats.coreml_export import export
from core.formats.coreml_sizes import lance_sizes
from core.formats.coreml_weights import Reader
from core.lance.decoder import Routing
from core.lance.rotary import text_positions
from core.runtime.check import variant_schemes
from core.runtime.loading import load_model
from kernels.packing import unpack

INT4 = Scheme(4, 64, False)
HEAD, EMBEDDING = "language_model.lm_head", "language_model.model.embed_tokens"
OUTER = {HEAD: Scheme(8, 64, True), EMBEDDING: Scheme(4, 64, True)}
QUESTION = "How many red circles are in the picture?"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An int4 variant of the embedded checkpoint's first layers, some linears in other formats, and its export."""
    place = tmp_path_factory.mktemp("coreml")
    base = first_layers(CHECKPOINT, place / "base", 2)

    def scheme_of(name: str) -> Scheme:
        if name.endswith("layers.1.self_attn.o_proj"):
            return Scheme(4, 32, True)
        return Scheme(5, CHANNEL, False) if name.endswith("layers.0.mlp.down_proj") else INT4

    variant = write_variant(base, place / "base" / "variant", scheme_of, OUTER)
    record = json.loads((variant / "lance_workbench.json").read_text())
    (variant / "lance_workbench.json").write_text(json.dumps(record | {"name": "lance-demo_int4"}))
    said: list[str] = []
    exported = export(variant, place / "int4", said.append)
    package = exported.path / "lance-demo_int4.mlpackage"
    return SimpleNamespace(
        base=base, variant=variant, exported=exported, package=package, runner=Runner(package), said=said
    )


def token_ids(folder: Path, text: str = QUESTION) -> torch.Tensor:
    from core.lance.loading import load_tokenizer

    return torch.tensor(load_tokenizer(folder)(text)["input_ids"])


def lance_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """What our own model makes of the ids, in float32."""
    model = load_model(folder, "cpu", torch.float32).model
    flags, roles = torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.int8)
    with torch.inference_mode():
        cos, sin = model.rotary(text_positions(0, len(ids)))
        rows = model.embed_text(ids)
        return model.logits(model.language_model.model(rows, cos, sin, Routing.of(flags, roles), causal=True))


def mask(new: int, past: int) -> np.ndarray:
    """As the model card makes it."""
    return np.triu(np.full((new, past + new), -30000, np.float16), past + 1)[None, None]


def pieces(count: int) -> list[tuple[int, int]]:
    """A prompt of all but two tokens, then the two one by one."""
    return [(0, count - 2), (count - 2, count - 1), (count - 1, count)]


@pytest.mark.parametrize(("kind", "tolerance"), [("embedded", 2e-4), ("int4", 0.05)])
def test_the_decoder_that_is_converted_answers_as_lance(world: Any, kind: str, tolerance: float) -> None:
    """In float32, so that only what the weights went through shows: of int4 Lance rounds products to bfloat16."""
    folder = CHECKPOINT if kind == "embedded" else world.variant
    ids, info = token_ids(folder), describe(folder)
    model, sizes = lance_sizes(info)
    reader = Reader(TensorSource.open(folder), structure_of(folder), model, variant_schemes(folder))
    decoder = reader.decoder(sizes).float()
    with torch.inference_mode():
        rows = [
            decoder(ids[None, first:end], torch.from_numpy(mask(end - first, first)).float())
            for first, end in pieces(len(ids))
        ]
    wanted = lance_logits(folder, ids)
    assert float((torch.cat(rows, 1)[0] - wanted).abs().max()) < tolerance
    assert float(wanted.abs().max()) > 5


def test_the_written_package_answers_as_lance_from_its_state(world: Any) -> None:
    ids = token_ids(world.variant)
    rows = []
    for first, end in pieces(len(ids)):
        new = {"inputIds": ids[None, first:end].numpy().astype(np.int32)}
        rows.append(world.runner.predict(new | {"causalMask": mask(end - first, first)})["logits"][0])
    found, wanted = np.concatenate(rows), lance_logits(world.variant, ids).numpy()
    assert found.dtype == np.float16
    assert np.abs(found - wanted).max() < 0.1
    assert (found.argmax(-1) == wanted.argmax(-1)).all()


def und_linears(folder: Path) -> list[str]:
    """The matrices in the order in which the package multiplies by them."""
    structure = structure_of(folder)
    linears = [name for group in structure.groups() if group.expert == "und" for name in group.linears]
    return [*linears, structure.head]


def test_codes_scales_and_zeros_are_those_of_the_variant(world: Any) -> None:
    source = TensorSource.open(world.variant)
    default, own = variant_schemes(world.variant)  # type: ignore[misc]
    linears = operations(world.runner.function, "linear")
    names = und_linears(world.variant)
    assert len(linears) == len(names) == 15
    for name, linear in zip(names, linears, strict=True):
        scheme, made = own.get(name, default), linear.weight.op
        assert made.op_type == "constexpr_blockwise_shift_scale"
        rows, columns = made.data.shape
        codes = unpack(source.get(f"{name}.weight_packed"), scheme.bits, columns)
        assert np.array_equal(made.data.val, codes.numpy())
        assert made.data.dtype.get_bitwidth() == (4 if scheme.bits <= 4 else 8)
        scale = source.get(f"{name}.weight_scale")
        assert np.array_equal(made.scale.val, scale.half().numpy())
        assert (made.offset is None) == scheme.symmetric
        steps = codes.double()
        if made.offset is not None:
            zero = unpack(source.get(f"{name}.weight_zero_point"), scheme.bits, rows, dim=0)
            assert np.array_equal(made.offset.val, zero.numpy())
            steps = steps - zero.double().repeat_interleave(columns // zero.shape[1], 1)
        exact = steps * scale.half().double().repeat_interleave(columns // scale.shape[1], 1)
        assert np.array_equal(made.materialized_val_inference(), exact.half().numpy()), "rounded once"


def test_four_bit_codes_take_four_bits(world: Any) -> None:
    default, own = variant_schemes(world.variant)  # type: ignore[misc]
    source = TensorSource.open(world.base)
    expected = 0.0
    for name in [*und_linears(world.variant), EMBEDDING]:
        rows, columns = source.shape(f"{name}.weight")
        scheme = own.get(name, default)
        bits, groups = (4 if scheme.bits <= 4 else 8), columns // scheme.width(columns)
        expected += rows * (columns * bits + groups * (16 + (0 if scheme.symmetric else bits))) / 8
    weights = world.package / "Data/com.apple.CoreML/weights/weight.bin"
    assert expected < weights.stat().st_size < 1.02 * expected
    assert world.exported.left_out[-1].startswith("the packing of int5 asym channel")


def test_the_weights_are_those_that_lance_runs(world: Any) -> None:
    runs = load_model(world.variant, "cpu", torch.float32).model
    linears = operations(world.runner.function, "linear")
    for name, linear in zip(und_linears(world.variant), linears, strict=True):
        weight = runs.get_submodule(name).weight().float().numpy()
        # Ours is rounded to bfloat16, theirs to float16, of which the least number is 6e-8.
        assert np.allclose(linear.weight.op.materialized_val_inference(), weight, rtol=2**-8, atol=1e-6), name
    table = operations(world.runner.function, "gather")[-1].x.op.materialized_val_inference()
    rows = runs.embed_text(torch.arange(1024)).numpy()
    assert np.allclose(table, rows, rtol=2**-8, atol=1e-6)


def test_the_interface_is_that_of_the_model_card(world: Any) -> None:
    import coremltools as ct

    spec = ct.utils.load_spec(str(world.package))
    assert spec.specificationVersion == 9, "macOS 15, iOS 18"
    float16, int32 = 65552, 131104
    assert {f.name: f.type.multiArrayType.dataType for f in spec.description.input} == {
        "inputIds": int32,
        "causalMask": float16,
    }
    assert [(f.name, f.type.multiArrayType.dataType) for f in spec.description.output] == [
        ("logits", float16)
    ]
    states = {f.name: f.type.stateType.arrayType for f in spec.description.state}
    assert {name: list(array.shape) for name, array in states.items()} == {
        "keyCache": [2, 1, 1, 4096, 128],
        "valueCache": [2, 1, 1, 4096, 128],
    }
    mask_range = spec.description.input[1].type.multiArrayType.shapeRange.sizeRanges
    assert [(r.lowerBound, r.upperBound) for r in mask_range] == [(1, 1), (1, 1), (1, 4096), (1, 4096)]
    card = (world.exported.path / "README.md").read_text()
    for name in ("inputIds", "causalMask", "logits", "keyCache", "valueCache", "lance-demo_int4.mlpackage"):
        assert f"`{name}`" in card
    assert "float16 [2, 1, 1, 4096, 128]" in card and "int4 asym g64" in card


def test_the_program_on_the_model_card_runs_and_answers_as_lance(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import coremltools as ct

    class Package(Runner):
        """In MLModel's place, which needs a Mac."""

        def __init__(self, path: str, compute_units: Any) -> None:
            super().__init__(Path(path))

        def make_state(self) -> dict[str, np.ndarray]:
            return self.states

        def predict(self, inputs: dict[str, np.ndarray], state: Any = None) -> dict[str, np.ndarray]:
            assert state is self.states
            return super().predict(inputs)

    monkeypatch.setattr(ct.models, "MLModel", Package)
    monkeypatch.chdir(world.exported.path)
    program = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    known: dict[str, Any] = {}
    exec(program.replace("< 50", "< 6"), known)
    assert capsys.readouterr().out.strip("\n") == known["tokenizer"].decode(known["answer"])
    prompt = "<|im_start|>user\nWhat is the colour of a ripe banana?<|im_end|>\n<|im_start|>assistant\n"
    ids = token_ids(world.variant, prompt).tolist()
    expected: list[int] = []
    while len(expected) < 6:
        token = int(lance_logits(world.variant, torch.tensor(ids + expected))[-1].argmax())
        if token == known["stop"]:
            break
        expected.append(token)
    assert known["answer"] == expected and len(expected) > 2


def test_no_cache_is_ever_cast(world: Any) -> None:
    function = world.runner.function
    assert len(operations(function, "scaled_dot_product_attention")) == 2
    assert len(operations(function, "coreml_update_state")) == 4
    for op in operations(function, "cast"):
        assert 4096 not in op.x.shape, op.name


def test_the_folder_is_whole_and_accounted_for(world: Any) -> None:
    exported = world.exported
    for name, digest in exported.files.items():
        assert hashlib.sha256((exported.path / name).read_bytes()).hexdigest() == digest, name
    on_disk = [path for path in exported.path.rglob("*") if path.is_file()]
    assert len(on_disk) == len(exported.files)
    assert sum(path.stat().st_size for path in on_disk) == exported.size_bytes
    assert {"vocab.json", "merges.txt", "tokenizer_config.json", "config.json", "README.md"} <= set(
        exported.files
    )
    config = json.loads((exported.path / "config.json").read_text())
    assert "quantization_config" not in config and config["hidden_size"] == 256
    assert exported.left_out[0].startswith("the generation expert (14 linears with their norms, ")
    assert any("vision tower" in each for each in exported.left_out)
    assert any(line.startswith("Scales: ") for line in world.said)
    assert all(path.stat().st_mode & 0o400 for path in on_disk)


def test_upstreams_rounding_of_the_rotary_frequencies_is_kept(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "upstream")
    record = tmp_path / "upstream" / "lance_workbench.json"
    record.write_text(record.read_text().replace('"plain"', '"upstream"'))
    plain, rounded = (
        lance_sizes(describe(folder))[1].inv_freq for folder in (CHECKPOINT, tmp_path / "upstream")
    )
    assert not torch.equal(plain, rounded)
    assert torch.equal(plain.bfloat16().float(), rounded)


def test_a_causal_lm_as_nvfp4_keeps_its_codes_and_answers_as_in_transformers(
    golden: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from core.runtime.causal_lm import load_text_model

    causal = write_causal(tmp_path / "qwen3", golden)
    variant = write_variant(causal, tmp_path / "variant", lambda name: NVFP4, {})
    capfd.readouterr()
    exported = export(variant, tmp_path / "out", lambda text: None)
    written = capfd.readouterr()
    assert written.out == written.err == "", "the converter's warnings and progress bars stay away"
    assert exported.left_out == ()
    package = exported.path / "variant.mlpackage"
    runner = Runner(package)
    ids = torch.arange(7, 19)
    loaded = load_text_model(variant, "cpu", torch.float32).model
    with torch.inference_mode():
        wanted = loaded(input_ids=ids[None]).logits[0].numpy()
    rows = [
        runner.predict({"inputIds": ids[None, a:b].numpy().astype(np.int32), "causalMask": mask(b - a, a)})[
            "logits"
        ][0]
        for a, b in pieces(len(ids))
    ]
    assert np.abs(np.concatenate(rows) - wanted).max() < 0.02 * np.abs(wanted).max()
    made = operations(runner.function, "constexpr_lut_to_dense")
    assert len(made) == 7 and {op.indices.dtype.get_bitwidth() for op in made} == {4}
    for name, linear in zip(und_linears(variant)[:-1], operations(runner.function, "linear"), strict=False):
        read = linear.weight.op.materialized_val_inference()
        runs = loaded.get_submodule(name).weight()
        assert np.array_equal(read.astype(np.float32), runs.numpy()), f"{name}: nothing was rounded"
    assert "macOS 26" in (exported.path / "README.md").read_text()
    import coremltools as ct
    import coremltools.optimize as cto

    model = cto.coreml.decompress_weights(ct.models.MLModel(str(package), skip_model_load=True))
    found = [each.val for each in cto.coreml.get_weights_metadata(model, weight_threshold=1000).values()]
    for name in und_linears(variant)[:-1]:
        runs = loaded.get_submodule(name).weight().numpy()
        assert any(np.array_equal(each, runs) for each in found), f"{name} by coremltools' public calls"
    table = operations(runner.function, "gather")[-1].x.val
    assert np.array_equal(table, loaded.model.embed_tokens.weight.half().numpy())
    assert np.array_equal(operations(runner.function, "linear")[-1].weight.val, table), "stored once, tied"
    spec = model.get_spec()
    assert spec.specificationVersion > 9
    assert spec.description.state[0].type.stateType.arrayType.shape[3] == 40, "no more than it was made for"
