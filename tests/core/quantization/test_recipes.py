from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from core.errors import UsageError
from core.quantization import recipe as recipes
from core.quantization import widths
from core.quantization.groups import LinearGroup

GOOD = recipes.load("int4-awq").text


def test_the_ready_recipes_load_and_say_what_they_do() -> None:
    assert recipes.names() == [
        "int4-awq",
        "int4-best",
        "int4-compact",
        "int4-fast",
        "int4-fp8",
        "int4-minmax",
        "int4-refined",
        "int5",
        "mixed",
        "nvfp4",
        "nvfp4-best",
    ]
    for name in recipes.names():
        recipe = recipes.load(name)
        assert recipe.name == name and recipe.summary
    assert not recipes.load("int4-minmax").needs_calibration
    assert recipes.load("int4-awq").needs_calibration
    for weights in recipes.load("int4-awq").role_weights.values():
        assert sum(weights.values()) == pytest.approx(1)


def test_another_group_is_another_recipe_and_its_text_says_so() -> None:
    recipe = recipes.load("int4-awq")
    other = recipe.with_group(64)
    assert other.variant_suffix == "int4-awq-g64"
    assert tomllib.loads(other.text)["format"]["group"] == 64
    assert other.fingerprint != recipe.fingerprint
    assert recipe.with_group(None) == recipe


def test_a_group_may_be_the_whole_row(tmp_path: Path) -> None:
    recipe = recipes.load("int4-best").with_group("channel")
    assert (recipe.scheme.label, recipe.variant_suffix) == ("int4 asym channel", "int4-best-channel")
    path = tmp_path / "mine.toml"
    path.write_text(recipe.text)
    assert recipes.load(str(path)) == recipe
    assert recipe.with_group(64) == recipes.load("int4-best")
    path.write_text(recipe.text.replace('"channel"', "-1"))
    with pytest.raises(UsageError, match=r"format\.group is -1, wanted a number of columns or 'channel'"):
        recipes.load(str(path))


def test_head_and_embedding_keep_their_own_groups(tmp_path: Path) -> None:
    recipe = recipes.load("int4-compact")
    assert {key: scheme.label for key, scheme in recipe.outer.items()} == {
        "head": "int8 sym g64", "time": "int8 sym g64", "embedding": "int4 sym g32"
    }  # fmt: skip
    other = recipe.with_group(128)
    assert (other.scheme.group_size, other.outer) == (128, recipe.outer)
    path = tmp_path / "written.toml"
    path.write_text(other.text)
    assert recipes.load(str(path)) == other
    path.write_text(recipe.text.replace("symmetric = true", "symmetric = false"))
    with pytest.raises(UsageError, match=r"embedding\.symmetric is false, wanted true"):
        recipes.load(str(path))


def test_nvfp4_has_a_group_of_its_own_and_needs_no_calibration() -> None:
    recipe = recipes.load("nvfp4")
    assert (recipe.scheme.label, recipe.variant_suffix) == ("nvfp4", "nvfp4-g16")
    assert not recipe.needs_calibration and recipes.load("nvfp4-best").needs_calibration
    assert recipe.with_group(16) == recipe
    with pytest.raises(UsageError, match="nvfp4 has four bits and groups of 16"):
        recipe.with_group(32)


def test_the_generation_expert_may_have_a_format_of_its_own(tmp_path: Path) -> None:
    recipe = recipes.load("int4-fp8")
    assert (recipe.label, recipe.variant_suffix) == ("int4 asym g64 + fp8", "int4-fp8-g64")
    und, gen = (group("down", "down_proj", expert=expert) for expert in ("und", "gen"))
    other = recipe.with_group(128)
    assert [other.scheme_of(found).label for found in (und, gen)] == ["int4 asym g128", "fp8"]
    path = tmp_path / "mine.toml"
    path.write_text(other.text)
    assert recipes.load(str(path)) == other
    path.write_text(recipe.text.replace('type = "fp8"', "bits = 5\ngroup = 32\nsymmetric = true"))
    assert recipes.load(str(path)).scheme_of(gen).label == "int5 sym g32"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type = "fp8"', 'type = "fp4"', r"gen\.type has 'fp4'; there are int, nvfp4, fp8"),
        ('type = "fp8"', 'type = "fp8"\nbits = 8', r"unknown key gen of type fp8\.bits; there are type"),
        ("[gen]", "[mixed]\nbits = [3, 4]\nbudget = 4.3\n[gen]", r"has both gen and mixed"),
        ("[gen]", "[refine]\nsteps = 3\n[gen]", r"has refine, but gradients do not pass"),
    ],
)
def test_a_format_that_the_generation_expert_cannot_have_is_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(recipes.load("int4-fp8").text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        recipes.load(str(path))


def group(kind: str, *linears: str, layer: int = 0, expert: str = "und") -> Any:
    names = tuple(f"model.layers.{layer}.x.{linear}" + "_moe_gen" * (expert == "gen") for linear in linears)
    return LinearGroup(layer, expert, kind, names, None, None)  # type: ignore[arg-type]


GROUPS = [
    group("qkv", "q_proj", "k_proj", "v_proj", layer=layer, expert=expert)
    for layer in (0, 1)
    for expert in ("und", "gen")
] + [group("down", "down_proj", layer=layer) for layer in (0, 1)]


def written(tmp_path: Path, tables: str) -> recipes.Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("[format]", f"{tables}\n[format]", 1))
    return recipes.load(str(path))


def test_groups_of_linears_may_have_widths_of_their_own(tmp_path: Path) -> None:
    recipe = written(
        tmp_path, '[widths]\n"layers.*.und.qkv" = 6\n"layers.1.*" = 5\n"layers.0.und.down_proj" = 8'
    )
    widths.check(GROUPS, recipe.scheme, recipe.widths, recipe.name)
    # The last pattern that matches counts; group and signs are the format's.
    assert [recipe.scheme_of(found).label for found in GROUPS] == [
        "int6 asym g128", "int4 asym g128", "int5 asym g128", "int5 asym g128", "int8 asym g128", "int5 asym g128"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            '"layers.0.und.v_proj" = 8',
            r"recipe int4-awq asks q_proj, k_proj in 4 bits and v_proj in 8 bits in layers\.0\.und\.qkv: linears "
            r'that share an input are fused and take one format; .*"layers\.0\.und\.qkv" = 8',
        ),
        (
            '"layers.7.*" = 8',
            r'widths\."layers\.7\.\*" matches no group of this checkpoint; .* layers\.0\.und\.qkv to',
        ),
    ],
)
def test_two_formats_in_a_fused_group_and_idle_patterns_are_refused(
    tmp_path: Path, tables: str, message: str
) -> None:
    recipe = written(tmp_path, f"[widths]\n{tables}")
    with pytest.raises(UsageError, match=message):
        widths.check(GROUPS, recipe.scheme, recipe.widths, recipe.name)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ('[widths]\n"layers.0.*" = 9', r'widths\."layers\.0\.\*" has 9, wanted 2 to 8 bits'),
        ("widths = 3", r"widths is no table"),
        (
            "[mixed]\nbits = [4, 3]\nbudget = 4.25",
            r"mixed\.bits is \[4, 3\], wanted two widths or more, ascending",
        ),
        ("[mixed]\nbits = [3, 4]", r"mixed wants either budget .* or budget_bytes"),
        ("[mixed]\nbits = [3, 4]\nbudget = 4\nbudget_bytes = 4", r"mixed wants either budget"),
        ("[mixed]\nbits = [3, 4]\nbudget = 0", r"mixed\.budget is 0, wanted bits a weight"),
        ("[mixed]\nbits = [3, true]\nbudget = 4", r"mixed\.bits has True, wanted 2 to 8 bits"),
        (
            "[mixed]\nbit = [3, 4]\nbudget = 4",
            r"unknown key mixed\.bit; there are bits, budget, budget_bytes",
        ),
    ],
)
def test_widths_that_are_not_understood(tmp_path: Path, tables: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        written(tmp_path, tables)


def test_chosen_widths_are_written_into_the_recipe(tmp_path: Path) -> None:
    recipe = written(
        tmp_path, '[mixed]\nbits = [3, 4, 6]\nbudget = 4.25\n[widths]\n"layers.0.und.down" = 6\n'
    )
    assert recipe.mixed is not None
    assert recipe.mixed.allowance(800) == 425
    assert recipe.needs_calibration
    open_groups = [found for found in GROUPS if not widths.pinned(found, recipe.widths)]
    assert open_groups == [*GROUPS[:4], GROUPS[5]]
    chosen = recipe.with_widths({found.key: 3 for found in open_groups})
    path = tmp_path / "chosen.toml"
    path.write_text(chosen.text)
    again = recipes.load(str(path))
    assert again == chosen
    assert all(widths.pinned(found, again.widths) for found in GROUPS)
    assert [again.scheme_of(found).bits for found in GROUPS] == [3, 3, 3, 3, 6, 3]


def test_an_unknown_recipe_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"int3-magic.*int4-awq, int4-best"):
        recipes.load("int3-magic")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bits = 4", "bit = 4", r"unknown key format\.bit; there are type, bits, group, symmetric"),
        ("bits = 4", "bits = 9", r"format: bits is 9"),
        ("bits = 4", "bits = true", r"format\.bits is True, wanted a whole number"),
        ("bits = 4", 'bits = 4\ntype = "fp8"', r"format\.type has 'fp8'; there are int, nvfp4"),
        ("bits = 4", 'type = "nvfp4"', r"unknown key format of type nvfp4\.group; there are type"),
        ("group = 128", "", r"format\.group is missing"),
        (
            'kind = "awq"',
            'kind = "magic"',
            r"steps\[0\]\.kind has 'magic'; there are values, awq, ranges, gptq",
        ),
        ('kind = "awq"', "", r"steps\[0\] has no kind"),
        ('"down"]', '"dwon"]', r"steps\[0\]\.groups has 'dwon'; there are qkv, gate_up, down"),
        ("answer = 0.4", "answers = 0.4", r"unknown key calibration\.weights\.und\.answers"),
        ("answer = 0.4", "answer = -1", r"weights\.und\.answer is -1"),
        ('too_few = "error"', 'too_few = "ignore"', r"too_few has 'ignore'; there are error, round"),
        ("exponents = 20", "exponents = 0", r"exponents is 0"),
        ('name = "int4-awq"', 'name = "a/b"', r"name 'a/b'"),
        (
            "duo = true",
            "duo = true\n[[steps]]\nkind = 'awq'\ngroups = ['down']",
            r"down is scaled by two steps",
        ),
        ("duo = true", "duo = true\n[[steps]]\nkind = 'gptq'\ndamping = 2.0", r"steps\[1\]\.damping is 2\.0"),
        (
            "duo = true",
            "duo = true\n[[steps]]\nkind = 'gptq'\n[[steps]]\nkind = 'ranges'",
            r"ranges comes after gptq; steps are taken in the order values, awq, ranges, gptq",
        ),
        (
            "duo = true",
            "duo = true\n[[steps]]\nkind = 'gptq'\n[[steps]]\nkind = 'gptq'",
            r"gptq is asked for twice",
        ),
        ("[format]", "[format", r"no TOML"),
    ],
)
def test_what_is_not_understood_is_named_with_its_file(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=message) as caught:
        recipes.load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_of_the_users_own_is_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"int4-awq"', '"mine"').replace("bits = 4", "bits = 3"))
    recipe = recipes.load(str(path))
    assert (recipe.name, recipe.scheme.bits) == ("mine", 3)
