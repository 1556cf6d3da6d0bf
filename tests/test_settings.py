"""What settings take and refuse, and what follows from them."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import memweir as mw
from memweir import settings
from memweir.settings import Settings, configure, current, parts, use

LOW = Settings(low_memory=True)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings of another test, and no heap tuned for one."""
    monkeypatch.setattr(settings, "apply", lambda *args: None)
    use(None)
    yield
    use(None)


sizes = st.integers(0, 1 << 40) | st.sampled_from(["3 MiB", "2 GiB", "0.5GB", "25%"])
seconds = st.none() | st.integers(0, 10_000) | st.floats(0, 1e6)
thresholds = st.integers(0, 32 << 20) | st.sampled_from(["3 MiB", "128KiB", "0.5 MB"])
anything = st.fixed_dictionaries(
    {},
    optional={
        "cache_budget": sizes,
        "low_memory": st.booleans(),
        "tune": st.sampled_from([None, "images", "models", "server"]),
        "mmap_threshold": st.none() | thresholds,
        "trim_threshold": st.none() | thresholds,
        "arena_max": st.none() | st.integers(1, 512),
        "session_profile": st.sampled_from(["balanced", "lean", "arena_off", "default"]),
        "idle_offload": seconds,
        "idle_unload": seconds,
    },
)
KNOBS = ("mmap_threshold", "trim_threshold", "arena_max")


def fit(values: dict[str, Any]) -> bool:
    """Whether nothing is in place of a profile's that is not there."""
    profile = values.get("tune", "images" if values.get("low_memory") else None)
    return profile is not None or all(values.get(name) is None for name in KNOBS)


def test_every_setting_is_generated_and_documented() -> None:
    names = {part.name for part in parts()}
    assert names == {field.name for field in fields(Settings)}
    found: set[str] = set()

    @given(anything)
    def collect(values: dict[str, Any]) -> None:
        found.update(values)

    collect()
    assert found == names


@given(anything)
def test_dicts_round_trip_through_json(values: dict[str, Any]) -> None:
    assume(fit(values))
    made = Settings(**values)
    full = json.loads(json.dumps(made.as_dict()))
    assert set(full) == {part.name for part in parts()}
    assert Settings.from_dict(full) == made
    said = json.loads(json.dumps(made.said()))
    assert said == values
    again = Settings.from_dict(said)
    assert again == made
    assert again.origins() == made.origins()


@given(anything)
def test_variables_round_trip(values: dict[str, Any]) -> None:
    assume(fit(values))
    texts = {
        f"MEMWEIR_{name.upper()}": "none" if value is None else f" {value!s} "
        for name, value in values.items()
    }
    found = Settings.from_env({**texts, "OTHER": "x", "MEMWEIR_SIMD": "portable"})
    plain = {**values}
    for name in ("cache_budget", *KNOBS[:2]):  # sizes stay the text they are
        if plain.get(name) is not None:
            plain[name] = str(plain[name])
    assert found == Settings(**plain)


@given(anything)
def test_copies_know_what_was_said(values: dict[str, Any]) -> None:
    assume(fit(values))
    made = Settings(**values)
    for twin in (pickle.loads(pickle.dumps(made)), copy.copy(made), copy.deepcopy(made)):
        assert twin == made
        assert hash(twin) == hash(made)
        assert twin.origins() == made.origins()


BAD = {
    "cache_budget": ["plenty", "-1", "200%", "none", "1 QiB"],
    "low_memory": ["maybe", "2", "none"],
    "tune": ["image", "everything"],
    "mmap_threshold": ["big", "-4", "4 XiB", "33 MiB"],
    "trim_threshold": ["big", "1e400", "2 GiB"],
    "arena_max": ["0", "-1", "1.5", "two", "1_000", "٣", "99999999999"],
    "session_profile": ["none", "fast"],
    "idle_offload": ["soon", "-1", "nan", "inf", "1_0"],
    "idle_unload": ["5 min", "-0.1"],
}


def test_every_setting_has_bad_text() -> None:
    assert set(BAD) == {part.name for part in parts()}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in BAD.items() for t in texts])
def test_a_bad_variable_is_named_with_what_it_accepts(name: str, text: str) -> None:
    part = next(part for part in parts() if part.name == name)
    pattern = f"^{part.variable}: .*; it accepts {re.escape(part.kind.accepts)}$"
    with pytest.raises(ValueError, match=pattern):
        Settings.from_env({"MEMWEIR_TUNE": "images", part.variable: text})


def test_a_secret_in_the_wrong_variable_is_not_told() -> None:
    secret = "hf_" + "x" * 34
    for part in parts():
        with pytest.raises(ValueError, match=f"^{part.variable}: ") as told:
            Settings.from_env({part.variable: secret})
        assert secret not in str(told.value)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("cache_budget", None, TypeError),
        ("cache_budget", 1.5, TypeError),
        ("cache_budget", -1, ValueError),
        ("low_memory", 1, TypeError),
        ("low_memory", "1", TypeError),
        ("tune", "Images", ValueError),
        ("tune", True, TypeError),
        ("mmap_threshold", False, TypeError),
        ("arena_max", 0, ValueError),
        ("arena_max", 65537, ValueError),
        ("arena_max", 2.0, TypeError),
        ("arena_max", True, TypeError),
        ("session_profile", None, TypeError),
        ("idle_offload", float("nan"), ValueError),
        pytest.param("idle_offload", 10**400, ValueError, id="no float"),
        ("idle_offload", "30", TypeError),
        ("idle_unload", True, TypeError),
    ],
)
def test_a_bad_argument_is_named(name: str, value: object, error: type[Exception]) -> None:
    values: dict[str, Any] = {"tune": "images", name: value}
    for make in (lambda: Settings(**values), lambda: Settings.from_dict(values)):
        with pytest.raises(error, match=f"^{name}: .*; it accepts "):
            make()
    before = current()
    with pytest.raises(error, match=f"^{name}: "):
        configure(**values)
    assert current() == before


def test_unknown_names_are_errors_where_they_are_arguments() -> None:
    for make in (
        lambda: Settings.from_dict({"cash_budget": 1}),
        lambda: configure(cash_budget=1),
        lambda: Settings(cash_budget=1),  # type: ignore[call-arg]
    ):
        with pytest.raises(TypeError, match="cash_budget"):
            make()
    with pytest.raises(TypeError, match=r"memweir\.Settings"):
        configure({"cache_budget": 1})  # type: ignore[arg-type]
    assert Settings.from_env({"MEMWEIR_CASH_BUDGET": "1"}) == Settings()


def test_an_empty_variable_is_none() -> None:
    assert Settings.from_env({"MEMWEIR_CACHE_BUDGET": " ", "MEMWEIR_TUNE": ""}) == Settings()


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_without_a_profile_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*MEMWEIR_TUNE"):
        Settings(**{name: 1})  # type: ignore[arg-type]
    variable = f"MEMWEIR_{name.upper()}"
    with pytest.raises(ValueError, match=f"^{variable}: .*MEMWEIR_TUNE"):
        Settings.from_env({variable: "1"})
    assert Settings.from_env({variable: "1", "MEMWEIR_LOW_MEMORY": "on"}).tune == "images"


class TestLowMemory:
    def test_changes_what_was_not_said(self) -> None:
        assert not Settings().low_memory
        changed = {n: v for n, v in LOW.as_dict().items() if v != Settings().as_dict()[n]}
        assert changed == {
            "cache_budget": "256 MiB",
            "low_memory": True,
            "tune": "images",
            "session_profile": "lean",
            "idle_offload": 0,
            "idle_unload": 0,
        }

    @pytest.mark.parametrize("part", list(parts()), ids=lambda part: str(part.name))
    def test_leaves_every_part_to_who_says_it(self, part: settings.Part) -> None:
        if part.name == "low_memory":
            return
        value = {"arena_max": 2, "mmap_threshold": 7, "trim_threshold": 7}.get(
            part.name, part.default
        )
        made = Settings(low_memory=True, **{part.name: value})
        assert getattr(made, part.name) == value
        others = {n: v for n, v in made.as_dict().items() if n != part.name}
        assert others == {n: v for n, v in LOW.as_dict().items() if n != part.name}
        assert made.origins()[part.name] == "code"

    def test_follows_whoever_turns_it_on_last(self) -> None:
        kept = Settings(cache_budget="2 GiB", idle_unload=None)
        made = configure(kept, low_memory=True)
        assert (made.cache_budget, made.idle_unload, made.idle_offload) == ("2 GiB", None, 0)
        assert configure(low_memory=False) == kept

    def test_is_one_variable(self) -> None:
        assert Settings.from_env({"MEMWEIR_LOW_MEMORY": "1"}) == LOW
        over = {"MEMWEIR_LOW_MEMORY": "1", "MEMWEIR_TUNE": "none"}
        assert Settings.from_env(over) == replace(LOW, tune=None)


class TestOrigins:
    def test_are_told_of_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMWEIR_LOW_MEMORY", "1")
        monkeypatch.setenv("MEMWEIR_IDLE_UNLOAD", "60")
        made = configure(tune="models")
        assert made.origins() == {
            "cache_budget": "low memory",
            "low_memory": "environment",
            "tune": "configure",
            "mmap_threshold": "default",
            "trim_threshold": "default",
            "arena_max": "default",
            "session_profile": "low memory",
            "idle_offload": "low memory",
            "idle_unload": "environment",
        }
        assert set(Settings().origins().values()) == {"default"}


class TestConfigure:
    def test_counts_for_what_is_made_afterwards(self) -> None:
        before = mw.PixelCache()
        made = mw.configure(cache_budget="3 MiB")
        assert current() is made
        assert mw.PixelCache().budget == 3 << 20
        assert before.budget == 1 << 30
        assert mw.PixelCache("5 MiB").budget == 5 << 20
        use(None)
        assert mw.PixelCache().budget == 1 << 30

    def test_adds_to_what_is_in_force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMWEIR_CACHE_BUDGET", "7 MiB")
        configure(idle_unload=5)
        configure(idle_offload=1)
        assert current() == Settings(cache_budget="7 MiB", idle_unload=5, idle_offload=1)
        configure(Settings(idle_unload=9))
        assert current() == Settings(idle_unload=9)

    def test_sees_variables_that_change_until_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert current() == Settings()
        monkeypatch.setenv("MEMWEIR_CACHE_BUDGET", "7 MiB")
        assert current().cache_budget == "7 MiB"
        configure()
        monkeypatch.setenv("MEMWEIR_CACHE_BUDGET", "8 MiB")
        assert current().cache_budget == "7 MiB"

    def test_the_environment_is_read_again_only_when_it_changed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[Settings] = []
        plain = Settings.from_env
        monkeypatch.setattr(Settings, "from_env", lambda: read.append(plain()) or read[-1])
        monkeypatch.setattr(settings, "_read", None)
        for number in range(3):
            monkeypatch.setenv("MEMWEIR_ARENA_MAX", f"{number + 1}")
            monkeypatch.setenv("MEMWEIR_TUNE", "images")
            assert {current().arena_max for _ in range(5)} == {number + 1}
            assert len(read) == number + 1

    def test_an_environment_that_is_a_plain_dict_counts(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        variables = {"MEMWEIR_CACHE_BUDGET": "7 MiB"}
        monkeypatch.setattr(settings.os, "environ", variables)
        assert current().cache_budget == "7 MiB"
        variables["MEMWEIR_CACHE_BUDGET"] = "8 MiB"
        assert current().cache_budget == "8 MiB"

    def test_a_bad_variable_reaches_who_makes_a_cache(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMWEIR_IDLE_UNLOAD", "soon")
        for make in (mw.PixelCache, lambda: mw.PixelCache("1 MiB")):
            with pytest.raises(ValueError, match=r"^MEMWEIR_IDLE_UNLOAD: .*seconds"):
                make()
