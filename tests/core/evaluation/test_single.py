"""One answer, one picture, and the mistakes that are told before a model is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from core.errors import DataError, UsageError
from core.evaluation.single import Asked, Session


@pytest.fixture
def session(tiny_checkpoint: Path) -> Session:
    return Session(str(tiny_checkpoint), None, "cpu", "float32", lambda text: None)


def test_an_answer(session: Session, golden: Path) -> None:
    said: list[str] = []
    session.say = said.append
    result = session.run(
        Asked("x2t_image", "What is this?", (golden / "media" / "img1.png",), max_new_tokens=4)
    )
    assert result.tokens is not None and 1 <= len(result.tokens) <= 4
    assert result.checkpoint == "lance-tiny"
    assert said[0] == "loading lance-tiny on cpu"
    assert said[-1] == f"token {len(result.tokens)}"


def test_a_picture(session: Session, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cube.png"
    result = session.run(Asked("t2i", "a cube", out=out, height=32, width=48, steps=2))
    assert result.out == str(out)
    with Image.open(out) as image:
        assert image.size == (48, 32)
    first = out.read_bytes()
    session.run(Asked("t2i", "a cube", out=out, height=32, width=48, steps=2))
    assert out.read_bytes() == first, "the same seed draws the same picture"


def test_mistakes_are_told_before_loading(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_load", lambda: pytest.fail("loaded"))
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        session.run(Asked("x2t_image", "What?", (broken,)))
    with pytest.raises(DataError, match=r"none\.png: no such image"):
        session.run(Asked("x2t_image", "What?", (tmp_path / "none.png",)))
    with pytest.raises(UsageError, match="x2t_image takes at least one image; none given"):
        session.run(Asked("x2t_image", "What?"))
    with pytest.raises(UsageError, match=r"height 50: .* nearest is 48"):
        session.run(Asked("t2i", "a cube", out=tmp_path / "a.png", height=50))
    with pytest.raises(UsageError, match="0 steps"):
        session.run(Asked("t2i", "a cube", out=tmp_path / "a.png", steps=0))
    with pytest.raises(UsageError, match=r"a\.bmp: one frame makes a picture; wanted a name ending in \.png"):
        session.run(Asked("t2i", "a cube", out=tmp_path / "a.bmp"))
    assert not list(tmp_path.glob("*a.*"))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no checkpoint or variant"):
        Session("nowhere", None, "cpu", "auto", lambda text: None)
