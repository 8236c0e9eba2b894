"""What stands on the comparison screen: picture, question, the sides, and the scores in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from textual.strip import Strip

from core.store import Store
from core.store.columns import number
from workbench import look
from workbench.comparison import Comparison, Row, Sample
from workbench.widgets.difference import first_difference
from workbench.widgets.sides import GAP, LEAST, Lines, Side, split, stacked, unified
from workbench.widgets.text import Part, columns, rule, strip, visible, wrapped

WIDE = 100
"""From so many columns on, automatic layout puts the sides beside each other."""

LEAST_WIDTH = 80
"""What the remarks on a sample fit in: a terminal's usual width."""


@dataclass
class Options:
    """How the comparison is drawn, as the keys set it."""

    layout: str = "automatic"
    wrap: bool = True
    expected: bool = True
    picture: bool = True
    likelihood: bool = False


def body(comparison: Comparison, sample: Sample, width: int, height: int, options: Options) -> Lines:
    """The lines of one sample and which of them differ."""
    head = _question(comparison, sample, width, height, options)
    head.append(strip([]))
    if comparison.pictures:
        return head + _indented(_pictures(comparison, sample, width - 2, height - len(head))), set()
    lines, marks = _answers(comparison, sample, width - 2, options)
    return head + _indented(lines), {mark + len(head) for mark in marks}


def _indented(lines: list[Strip]) -> list[Strip]:
    return [Strip([Segment(" "), *line]) for line in lines]


def _question(
    comparison: Comparison, sample: Sample, width: int, height: int, options: Options
) -> list[Strip]:
    """The question, the instruction and the expected answer, with the picture at their left."""
    output = sample.reference
    picture: list[Strip] = []
    if options.picture and output["input_media"]:
        picture = _picture(
            comparison.store, output["input_media"], max(16, min(44, width // 3)), max(6, height // 3)
        )
    indent = picture[0].cell_length + 4 if picture else 1
    room = width - indent - 1
    label = look.ACCENT
    texts: list[list[Part]] = []
    if output["question"]:
        texts += _labelled("Prompt" if comparison.pictures else "Q", output["question"], label, room)
    if options.expected and output["expected"]:
        texts += [[], *_labelled("expected", output["expected"], label, room)]
    if output["instruction"] and picture:
        texts += [[], *_labelled("instruction", output["instruction"], look.MUTED, room, look.MUTED)]
    lines = []
    for y in range(max(len(texts), len(picture))):
        text = texts[y] if y < len(texts) else []
        if y < len(picture):
            lines.append(
                Strip([*strip([(" ", look.PLAIN)]), *picture[y], *strip([("   ", look.PLAIN), *text])])
            )
        else:
            lines.append(strip([(" " * indent, look.PLAIN), *text]))
    return lines


def _labelled(label: str, text: str, style: Any, room: int, body: Any = look.PLAIN) -> list[list[Part]]:
    lead = len(label) + 2
    lines = wrapped([(text, body)], max(10, room - lead))
    return [[(f"{label}  " if y == 0 else " " * lead, style), *line] for y, line in enumerate(lines)]


def _picture(store: Store, key: str, columns: int, rows: int) -> list[Strip]:
    from workbench.widgets.picture import fitted, half_blocks, opened

    image = opened(store.media(key), f"picture {key[:12]}")
    return half_blocks(image, *fitted(image.width, image.height, columns, rows))


def _answers(comparison: Comparison, sample: Sample, width: int, options: Options) -> Lines:
    reference = Side("bf16", sample.reference["text"] or "")
    rows = comparison.side_by_side(max(1, width // (LEAST + GAP) - 1))
    current = comparison.variant["id"]
    beside = options.layout == "split" or (options.layout == "automatic" and width >= WIDE - 1)
    if not beside:
        rows = [comparison.variant] if comparison.shown == 1 or options.layout == "unified" else rows
    sides = [
        Side(
            comparison.short(row), sample.variants.get(row["id"], {}).get("text") or "", row["id"] == current
        )
        for row in rows
    ]
    shaded = _shaded(comparison, sample) if options.likelihood else None
    if options.layout == "unified" and shaded is None:
        return unified(reference, next(side for side in sides if side.current), width, options.wrap)
    lines, marks = (split if beside else stacked)(reference, sides, width, options.wrap, shaded)
    if shaded is not None:
        return [_legend(comparison), *lines], {mark + 1 for mark in marks}
    return lines, marks


def _shaded(comparison: Comparison, sample: Sample) -> list[Part]:
    """The bf16 answer, each token shaded by how far the variant's distribution there is from bf16's."""
    from core.checkpoints import resolve
    from workbench.tokens import token_texts

    divergences = sample.variants.get(comparison.variant["id"], {}).get("kl_tokens") or []
    tokens = sample.reference["tokens"] or []
    texts = token_texts(resolve(comparison.reference["checkpoint"], comparison.store), tokens)
    values = [*divergences, *[None] * (len(texts) - len(divergences))]
    return [(text, look.heat(value)) for text, value in zip(texts, values, strict=False)]


def _legend(comparison: Comparison) -> Strip:
    parts: list[Part] = [
        (f" KL of {visible(comparison.short(comparison.variant))} at each bf16 token, nats: ", look.MUTED)
    ]
    for floor, style in zip(look.HEAT_FROM[1:], look.HEAT[1:], strict=True):
        parts += [(f" ≥{floor:g} ", style), (" ", look.PLAIN)]
    return strip(parts)


def _pictures(comparison: Comparison, sample: Sample, width: int, height: int) -> list[Strip]:
    """The pictures beside each other, bf16's at the left."""
    rows = comparison.side_by_side(max(1, width // (LEAST + GAP) - 1))
    cells = (width - GAP * len(rows)) // (len(rows) + 1)
    titled: list[tuple[str, Row, bool | None]] = [("bf16", sample.reference, None)]
    titled += [
        (comparison.short(row), sample.variants.get(row["id"], {}), row["id"] == comparison.variant["id"])
        for row in rows
    ]
    titles = [
        [rule([(visible(name), look.PLAIN if current is False else look.BOLD)], cells)]
        for name, _, current in titled
    ]
    lines = columns(titles, [cells] * len(titled), GAP)
    drawn = []
    for _, output, _ in titled:
        key = output.get("output_media")
        drawn.append(
            _picture(comparison.store, key, cells, max(8, height - 3))
            if key
            else [strip([("no picture", look.MUTED)])]
        )
    for y in range(max(map(len, drawn))):
        segments = []
        for block in drawn:
            line = block[y] if y < len(block) else Strip([])
            segments += [*line, *strip([(" " * (cells - line.cell_length + GAP), look.PLAIN)])]
        lines.append(Strip(segments))
    captions = [[_caption(output)] for _, output, _ in titled]
    return lines + columns(captions, [cells] * len(titled), GAP)


def _caption(output: Row) -> list[Part]:
    if output.get("pixel") is None:
        return []
    return [_tick(output["pixel"]), (f" {visible(str(output.get('text') or 'not recognised'))}", look.MUTED)]


def _tick(value: float | None) -> Part:
    if value is None:
        return ("—", look.MUTED)
    return ("✓", look.GOOD) if value else ("✗", look.BAD)


def scores(comparison: Comparison, sample: Sample) -> tuple[list[Part], list[Part]]:
    """The two lines below the answers: how close the variant is, and what is true."""
    output = sample.variants.get(comparison.variant["id"], {})
    if not output:
        return [(" this variant has no output for the sample", look.MUTED)], []
    if comparison.pictures:
        named = (("PSNR", "psnr", "{:.1f} dB"), ("MAE", "mae", "{:.4f}"), ("cosine", "cosine", "{:.4f}"),
                 ("velocity", "velocity", "{:.4f}"))  # fmt: skip
        return _named(output, named), [(" enter writes both beside each other to a PNG", look.MUTED)]
    first: list[Part] = [(" exact ", look.MUTED), _tick(output["exact"]), ("  ", look.PLAIN)]
    first += _named(
        output,
        (("Levenshtein", "levenshtein", "{:.2f}"), ("ratio", "ratio", "{:.2f}"), ("Jaccard", "jaccard", "{:.2f}"),
         ("top-1", "top1", "{:.3f}"), ("NLL", "nll", "{:.3f}")),
    )  # fmt: skip
    return first, _remarks(sample.reference, output)


def _named(output: Row, named: tuple[tuple[str, str, str], ...]) -> list[Part]:
    parts: list[Part] = []
    for title, key, form in named:
        if output.get(key) is not None:
            parts += [(f" {title} ", look.MUTED), (form.format(output[key]), look.PLAIN), (" ", look.PLAIN)]
    return parts


def _remarks(reference: Row, output: Row) -> list[Part]:
    parts: list[Part] = []
    if output["truth"] is not None or reference["truth"] is not None:
        parts += [(" truth ", look.MUTED), _tick(reference["truth"]), (" bf16 ", look.MUTED)]
        parts += [_tick(output["truth"]), (" variant", look.MUTED)]
    if output["kl"] is not None:
        parts.append((f"   KL {number(output['kl'], 4, output['kl'])}", look.PLAIN))
        if output["kl_max"] is not None:
            highest = number(output["kl_max"], 2, output["kl_max"])
            parts.append((f" (max {highest} at token {(output['kl_argmax'] or 0) + 1})", look.MUTED))
    place = first_difference(reference["tokens"] or [], output["tokens"] or [])
    if place is not None:
        used = sum(cell_len(text) for text, _ in parts)
        short = f"   parts at token {place + 1}"
        full = f"{short} of {len(reference['tokens'] or [])}"
        parts += [(text, look.MUTED) for text in (full, short) if used + cell_len(text) <= LEAST_WIDTH][:1]
    return parts
