"""The example of the documentation runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import memweir as mw

PAGE = Path(__file__).parents[2] / "docs" / "probes.md"


def test_the_example_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    whole = [block for block in blocks if "import memweir as mw" in block]
    assert len(whole) == 1
    exec(compile(whole[0], str(PAGE), "exec"), {"__name__": "example"})
    said = re.findall(r"# prints: (.*)", whole[0])
    assert capsys.readouterr().out.splitlines() == said
    assert said


def test_the_page_names_every_kind_and_every_count():
    text = PAGE.read_text()
    for kind in mw.probes.verdict.Kind.__args__:
        assert f"`{kind}`" in text
    for source in mw.probes.verdict.Source.__args__:
        assert f"`{source}`" in text
    for count in mw.probes.ProbeStats._fields:
        assert f"`{count}`" in text


def test_the_page_has_its_figures():
    assert "FIGURES" not in PAGE.read_text()
    assert "python -m benches probes" in PAGE.read_text()
