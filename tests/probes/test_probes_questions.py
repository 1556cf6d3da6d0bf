"""What makes two questions the same: subjects, environments, types and files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from probe_kit import TOKEN, Probe, cache

from memweir.probes import ProbeCache, ProbeFailed


def test_a_flag_stands_in_for_a_function_that_says_yes_or_no():
    probe = Probe(True)
    ask = ProbeCache(probe)
    is_vision = ask.flag(default=False)
    assert is_vision("model", token=TOKEN) is True
    probe.answer = ConnectionError()
    assert is_vision("other", token=TOKEN) is False
    assert ask.flag(default="perhaps")("other", token=TOKEN) == "perhaps"
    with pytest.raises(TypeError):
        is_vision("model")


def test_the_probe_gets_the_normalised_subject_that_was_looked_up():
    calls = []

    def normalize(subject):
        calls.append(subject)
        return subject.lower()

    probe = Probe(True)
    ask = cache(probe, normalize=normalize)
    assert ask.get("Org/Model").source == "probe"
    assert ask.get("org/MODEL").source == "cache"
    assert probe.asked == [("org/model", {})]
    assert calls == ["Org/Model", "org/MODEL"]
    assert ask.invalidate("ORG/model") == 1


def test_a_normaliser_that_fails_merges_nothing_and_is_noticed(caplog):
    def normalize(subject):
        if subject == "org/model":
            raise OSError("no disk")
        return subject.lower() if subject != "Nothing" else None

    probe = Probe(lambda subject: subject)
    ask = cache(probe, normalize=normalize)
    with caplog.at_level(logging.DEBUG, "memweir"):
        assert ask.get("Org/Model").value == "org/model"
        assert ask.get("org/model").source == "probe"  # not taken for the normalised one
        assert ask.get("org/model").source == "cache"
        assert ask.get("Nothing").value == "Nothing"
    assert ask.stats().normalize_fallbacks == 3
    assert [r.getMessage() for r in caplog.records if "not normalised" in r.getMessage()] == [
        "probe: org/model: not normalised, OSError",
        "probe: org/model: not normalised, OSError",
        "probe: Nothing: not normalised, NoneType",
    ]
    ask.put("Org/Model", "again")
    assert ask.stats().entries == 3
    assert ask.invalidate("Org/Model") == 1


def test_the_environment_is_part_of_the_question():
    versions = {"hub": 1}
    probe = Probe(lambda subject: dict(versions))
    ask = cache(probe, environment=lambda: tuple(versions.items()))
    assert ask.get("model").value == {"hub": 1}
    versions["hub"] = 2
    assert ask.get("model").value == {"hub": 2}
    versions["hub"] = 1
    assert ask.get("model").source == "cache"
    assert cache(probe, environment=("a", 1)).get("model").known


def test_what_is_unsupported_is_asked_again_in_another_environment():
    version = ["5.0"]
    probe = Probe(ProbeFailed("unsupported"))
    ask = cache(probe, environment=lambda: version[0])
    assert ask.get("model").reason.kind == ask.get("model").reason.kind == "unsupported"
    assert probe.count == 1
    version[0] = "5.1"
    probe.answer = True
    assert ask.get("model").value is True


def test_equal_values_of_different_types_are_different_questions():
    probe = Probe(True)
    ask = cache(probe)
    for value in (1, True, 1.0, "1"):
        ask.get("model", revision=value)
    assert probe.count == 4
    ask.get("model", a=1, b=2)
    ask.get("model", b=2, a=1)
    assert probe.count == 5
    with pytest.raises(TypeError):
        ask.get("model", revision=[])


def stamp(path):
    stat = Path(path).stat()
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def test_a_local_file_is_asked_about_again_when_it_changes(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("one")
    probe = Probe(lambda subject: Path(subject).read_text())
    ask = cache(probe, identify=stamp)
    assert [ask.get(path).value for _ in range(3)] == ["one"] * 3
    assert probe.count == 1
    path.write_text("three")
    assert ask.get(path).value == "three"


def test_a_file_that_cannot_be_looked_at_is_not_remembered(tmp_path):
    probe = Probe(False)
    ask = cache(probe, identify=stamp)
    for n in (1, 2, 3):
        assert ask.get(tmp_path / "none").value is False
        assert (probe.count, ask.stats().uncacheable, ask.stats().entries) == (n, n, 0)


def test_a_file_that_changes_while_it_is_probed_is_not_remembered(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("half")

    def probe(subject):
        text = path.read_text()
        path.write_text("the whole of it")
        return text

    ask = cache(probe, identify=stamp)
    assert ask.get(path).value == "half"
    assert ask.stats().fenced == 1
    assert ask.peek(path) is None
