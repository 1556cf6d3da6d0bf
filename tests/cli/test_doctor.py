"""The doctor, and the command line where its packages are missing."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from memweir.cli import doctor, machine

WITHOUT = "import sys; sys.modules[{name!r}] = None; from memweir.cli import main; main()"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=120
    )


def test_json_is_one_object_with_every_section() -> None:
    done = run("-m", "memweir", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert set(facts) == {"versions", "allocator", "limits", "findings"}
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["versions"]["python"].startswith("{}.{}.{}".format(*sys.version_info))
    assert facts["allocator"]["malloc"]


def test_text_tells_the_same() -> None:
    done = run("-m", "memweir", "doctor")
    assert done.returncode == 0, done.stderr
    for told in ("numpy", np.__version__, "malloc", "max map count"):
        assert told in done.stdout


def test_examining_imports_none_of_what_it_names() -> None:
    script = (
        "import sys; from memweir.cli import doctor; doctor.examine();"
        "sys.exit(bool({'torch', 'transformers', 'PIL', 'typer', 'rich'} & set(sys.modules)))"
    )
    assert run("-c", script).returncode == 0


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_its_packages_it_says_what_to_install(name: str) -> None:
    done = run("-c", WITHOUT.format(name=name))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"memweir: no module {name!r}: pip install 'memweir[cli]'"]


def test_another_missing_module_is_not_called_an_extra() -> None:
    done = run("-c", WITHOUT.format(name="memweir.cli.app"))
    assert done.returncode == 1
    assert "memweir.cli.app" in done.stderr
    assert "pip install" not in done.stderr


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    versions = doctor.versions()
    assert versions["numpy"] == np.__version__
    assert versions["no-such-package"] is None


def jemalloc_version(name, text, size, _new, _length):  # type: ignore[no-untyped-def]
    assert name == b"version"
    text._obj.value = b"5.3.0-0-g54eaed1d8b56"
    return 0


@pytest.mark.parametrize(
    ("symbols", "named"),
    [
        ({"malloc_trim": None}, None),
        ({"malloc_trim": None, "mallctl": jemalloc_version}, "jemalloc 5.3.0"),
        ({"malloc_trim": None, "mi_version": lambda: 209}, "mimalloc 2.0.9"),
        ({"malloc_trim": None, "MallocExtension_ReleaseFreeMemory": None}, "tcmalloc"),
    ],
)
def test_allocators_are_known_by_symbols(symbols: dict[str, object], named: str | None) -> None:
    process: ctypes.CDLL = SimpleNamespace(**symbols)  # type: ignore[assignment]
    assert doctor.replaced_malloc(process) == named


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    group(
        tmp_path / "proc", {"meminfo": "MemTotal: 4000 kB\nMemAvailable: 3000 kB\nHugePages: 0\n"}
    )
    (tmp_path / "proc/self").mkdir()
    return tmp_path


def test_v2_counts_every_ancestor(fake: Path) -> None:
    (fake / "proc/self/cgroup").write_text("0::/app/worker\n")
    stat = "anon 1\ninactive_file 100000\n"
    files = {"memory.current": "900000\n", "memory.stat": stat}
    group(fake / "cgroup/app", {**files, "memory.max": "1000000\n"})
    group(fake / "cgroup/app/worker", {**files, "memory.max": "max\n"})
    assert list(machine.groups()) == [(2, None, 800_000), (2, 1_000_000, 800_000)]
    assert machine.available() == 200_000


def test_v1_without_a_limit_is_bounded_by_the_machine(fake: Path) -> None:
    (fake / "proc/self/cgroup").write_text("5:cpu:/\n4:memory:/\n")
    unlimited = "9223372036854771712\n"
    usage = {"memory.usage_in_bytes": "7\n", "memory.stat": "total_inactive_file 9\n"}
    group(fake / "cgroup/memory", {**usage, "memory.limit_in_bytes": unlimited})
    assert list(machine.groups()) == [(1, None, 0)]
    assert machine.available() == 3000 * 1024


def test_nothing_is_known_where_there_is_no_proc(fake: Path) -> None:
    (fake / "proc/meminfo").unlink()
    assert machine.available() is None
    assert doctor.limits()["cgroup"] is None
