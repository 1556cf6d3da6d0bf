"""The doctor as a command, on this machine and on machines that are folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from doctor_kit import doctor, host, names, report, sound

from memweir.cli import doctor as command
from memweir.cli.doctor import Host, allocator, environment, kernel, limits
from memweir.cli.doctor.host import started

WITHOUT = "import sys; sys.modules[{name!r}] = None; from memweir.cli import main; main()"
SECTIONS = {"versions", "allocator", "kernel", "limits", "environment", "settings"}
SECRET = "hf_" + "x" * 34


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class TestCommand:
    def test_json_is_one_object_of_one_shape(self) -> None:
        shown = report()
        assert set(shown) == {"format", "healthy", "findings", *SECTIONS}
        assert shown["format"] == 1
        for one in shown["findings"]:
            assert set(one) == {"severity", "name", "what", "do", "subject"}
            assert one["severity"] in ("problem", "warning", "note")
        assert shown["versions"]["numpy"] == np.__version__
        assert shown["versions"]["python"].startswith("{}.{}.{}".format(*sys.version_info))
        assert shown["allocator"]["kind"]
        assert set(shown["limits"]) >= {"ram", "limit", "limit_source", "bounds", "cgroup"}
        for bound in shown["limits"]["bounds"]:
            assert set(bound) == {"kind", "source", "bytes"}
        assert shown["limits"]["limit"] == min(b["bytes"] for b in shown["limits"]["bounds"])
        assert set(shown["settings"]["values"]["tune"]) == {"value", "origin"}

    def test_text_tells_the_same(self) -> None:
        done = doctor(COLUMNS="200")
        for told in ("numpy", np.__version__, "kind", "max map count", "session_profile"):
            assert told in done.stdout
        for one in report()["findings"]:
            assert f"({one['name']})" in done.stdout

    def test_a_problem_is_the_exit_code_and_a_warning_is_not(self) -> None:
        assert {one["name"] for one in report()["findings"] if one["severity"] == "problem"} <= {
            "pair-broken"  # what is installed beside the tests is not their business
        }
        warned = doctor(MEMWEIR_TUNES="images")
        assert "MEMWEIR_TUNE" in warned.stdout
        assert warned.returncode == doctor().returncode
        broken = doctor(MALLOC_TRIM_THRESHOLD_="128K")
        assert broken.returncode == 1
        assert "variable-no-number" in broken.stdout

    def test_a_bad_setting_is_a_problem_and_not_a_crash(self) -> None:
        shown = report(MEMWEIR_IDLE_UNLOAD="soon")
        (one,) = (one for one in shown["findings"] if one["name"] == "setting-bad")
        assert "MEMWEIR_IDLE_UNLOAD" in one["what"]
        assert "seconds" in one["what"]
        assert not shown["healthy"]

    def test_a_library_that_is_not_there(self) -> None:
        shown = report(LD_PRELOAD="/nowhere/libjemalloc.so.2")
        (one,) = (one for one in shown["findings"] if one["name"] == "preload-missing")
        assert one["subject"] == "/nowhere/libjemalloc.so.2"

    def test_settings_say_where_they_come_from(self) -> None:
        shown = report(MEMWEIR_LOW_MEMORY="1", MEMWEIR_CACHE_BUDGET="7 MiB")["settings"]
        seen = {name: (part["value"], part["origin"]) for name, part in shown["values"].items()}
        assert seen["cache_budget"] == ("7 MiB", "environment")
        assert seen["tune"] == ("images", "low memory")
        assert seen["arena_max"] == (None, "default")
        assert shown["budget"] == 7 << 20
        assert shown["applied"] is None  # the doctor makes no cache

    def test_secrets_are_not_shown(self) -> None:
        variables = {
            "MEMWEIR_TOKEN": SECRET,
            "MEMWEIR_TUNE": SECRET,
            "MALLOC_ARENA_MAX": SECRET,
            "LD_PRELOAD": f"/nowhere/{SECRET}.so",
        }
        for options in ([], ["--json"]):
            done = doctor(*options, **variables, COLUMNS="500")
            assert SECRET not in done.stdout + done.stderr.replace(f"/nowhere/{SECRET}.so", "")
            assert "MEMWEIR_TOKEN" in done.stdout
            assert "[redacted]" in done.stdout

    def test_variables_that_nothing_reads_are_named_and_their_values_are_not(self) -> None:
        done = doctor("--json", MEMWEIR_PASSWORD="hunter2")
        assert "MEMWEIR_PASSWORD" in done.stdout
        assert "hunter2" not in done.stdout

    @pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
    def test_no_terminal_is_too_plain_for_it(self, encoding: str) -> None:
        done = doctor(PYTHONIOENCODING=encoding, MALLOC_ARENA_MAX="\udcff")
        assert done.returncode == 1
        assert "variable-no-number" in done.stdout
        assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_processors_are_those_it_may_run_on() -> None:
    """A process that is bound to as many as its quota has no more threads than it may."""
    done = run(
        "import os; from memweir.cli.doctor import Host;"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(Host.here().cpus)"
    )
    assert done.stdout == "1\n", done.stderr


def test_examining_imports_none_of_what_it_names() -> None:
    done = run(
        "import sys; from memweir.cli import doctor; doctor.examine();"
        "sys.exit(bool({'torch', 'transformers', 'PIL', 'typer', 'rich'} & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr


def test_in_a_process_it_tells_what_settings_did_there() -> None:
    done = run(
        "import json, memweir as mw; from memweir.cli import doctor;"
        "mw.configure(cache_budget='7 MiB', tune='images', arena_max=2);"
        "print(json.dumps(doctor.examine()['settings']))"
    )
    shown = json.loads(done.stdout)
    assert shown["values"]["cache_budget"] == {
        "value": "7 MiB",
        "origin": "configure",
    }
    assert shown["applied"]["by"] == "configure()"
    assert shown["applied"]["profile"] == "images"
    assert shown["applied"]["overrides"] == {"arena_max": 2}
    assert {knob["name"] for knob in shown["applied"]["knobs"]}


def test_what_is_set_by_the_program_itself_is_late() -> None:
    done = run(
        "import os, json, numpy; from memweir.cli import doctor;"
        "os.environ['MALLOC_ARENA_MAX'] = '2'; os.environ['NUMPY_MADVISE_HUGEPAGE'] = '0';"
        "print(json.dumps(doctor.examine()))",
        MALLOC_TRIM_THRESHOLD_="131072",
    )
    shown = json.loads(done.stdout)
    if shown["environment"]["variables"]["MALLOC_ARENA_MAX"]["late"] is None:
        pytest.skip("/proc/self/environ cannot be read here")
    assert shown["environment"]["variables"]["MALLOC_ARENA_MAX"]["late"] is True
    assert shown["environment"]["variables"]["MALLOC_TRIM_THRESHOLD_"]["late"] is False
    late = {one["subject"]: one["name"] for one in shown["findings"] if "late" in one["name"]}
    assert late == {
        "MALLOC_ARENA_MAX": "variable-late",
        "NUMPY_MADVISE_HUGEPAGE": "variable-maybe-late",
    }


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_its_packages_it_says_what_to_install(name: str) -> None:
    done = run(WITHOUT.format(name=name))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"memweir: no module {name!r}: pip install 'memweir[cli]'"]


def test_another_missing_module_is_not_called_an_extra() -> None:
    done = run(WITHOUT.format(name="memweir.cli.app"))
    assert done.returncode == 1
    assert "memweir.cli.app" in done.stderr
    assert "pip install" not in done.stderr


MEMINFO = "MemTotal: 4000 kB\nSwapTotal:       0 kB\n"
MAPS = "00-01 r-xp 00 00:00 5   /usr/lib/libjemalloc.so.2\n"
MAPS += "00-01 r-xp 00 00:00 5   /usr/lib/libgone.so.1.0 (deleted)\n02-03 rw-p 00 00:00 0\n"


class TestFolders:
    """Machines made of files."""

    def test_kernel(self, tmp_path: Path) -> None:
        huge = "sys/kernel/mm/transparent_hugepage"
        files = {
            f"{huge}/enabled": "[always] madvise never\n",
            f"{huge}/defrag": "always defer [madvise] never\n",
            "proc/sys/vm/overcommit_memory": "2\n",
            "proc/sys/vm/max_map_count": "1000\n",
            "proc/meminfo": MEMINFO,
            "proc/self/maps": MAPS,
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        }
        facts = sound()
        facts["kernel"] = kernel.facts(host(tmp_path, files))
        assert facts["kernel"] == {
            "huge_pages": "always",
            "huge_pages_defrag": "madvise",
            "overcommit_memory": 2,
            "max_map_count": 1000,
            "maps": 3,
            "pressure": True,
            "swap": 0,
        }
        wanted = {"huge-pages-always", "overcommit-strict", "maps-few", "swap-none"}
        assert names(facts) == wanted

    def test_kernel_that_hides_everything(self, tmp_path: Path) -> None:
        facts = sound()
        facts["kernel"] = kernel.facts(host(tmp_path, {}))
        assert facts["kernel"]["pressure"] is False
        assert {v for k, v in facts["kernel"].items() if k != "pressure"} == {None}
        assert names(facts) == {"pressure-unreadable"}

    @pytest.mark.parametrize("text", ["", "[", "x\0", "[always", "12 34", "-1", "٣", "a/b"])
    def test_kernel_of_nonsense(self, tmp_path: Path, text: str) -> None:
        paths = (
            *("sys/kernel/mm/transparent_hugepage/enabled", "proc/sys/vm/max_map_count"),
            *("proc/sys/vm/overcommit_memory", "proc/meminfo", "proc/self/cgroup"),
            *("sys/fs/cgroup/cpu.max", "proc/self/mounts", "proc/self/maps"),
        )
        seen = host(tmp_path, dict.fromkeys(paths, text), {"LD_PRELOAD": "libx.so"})
        facts = sound()
        facts["kernel"] = kernel.facts(seen)
        assert limits.quota(seen) is None
        assert limits.controller(seen) is None
        # Where no maps are to be seen, nothing is known to be missing.
        assert [one["there"] for one in allocator.preloaded(seen)] == [text == ""]
        command.judge(facts)

    @pytest.mark.parametrize(
        ("membership", "files", "kind", "cpus"),
        [
            ("0::/a/b\n", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, "v2", 1.5),
            ("0::/a\n", {"a/cpu.max": "400000 100000", "cpu.max": "50000 100000"}, "v2", 0.5),
            (
                "4:memory:/m\n3:cpu,cpuacct:/x\n",
                {"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"},
                "v1",
                2.0,
            ),
            (
                "4:memory:/\n3:cpu:/x\n0::/\n",
                {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"},
                "v1 (hybrid)",
                None,
            ),
            ("0::/a\n", {"a/cpu.max": "100000 0"}, "v2", None),
            ("1:name=systemd:/\n", {}, None, None),
        ],
    )
    def test_groups(
        self, tmp_path: Path, membership: str, files: dict[str, str], kind: str, cpus: float
    ) -> None:
        paths = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        seen = host(tmp_path, {"proc/self/cgroup": membership, **paths})
        assert limits.controller(seen) == kind
        assert limits.quota(seen) == cpus

    def test_limits_are_those_of_the_reader(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = "/sys/fs/cgroup/memory.max"
        bound = SimpleNamespace(kind="memory.max", source=source, bytes=1 << 30)
        ram = SimpleNamespace(kind="host", source="host", bytes=4 << 30)
        now = SimpleNamespace(
            available=1, limit=1 << 30, limit_source=source, charge=5, working_set=3
        )
        monkeypatch.setattr(limits, "limits", lambda: [bound, ram])
        monkeypatch.setattr(limits, "memory", lambda: now)
        facts = sound()
        facts["limits"] = limits.facts(host(tmp_path, {}))
        assert (facts["limits"]["ram"], facts["limits"]["limit"]) == (4 << 30, 1 << 30)
        assert facts["limits"]["shared_memory"] is None
        assert facts["limits"]["bounds"][0]["source"] == source
        assert names(facts) == {"limit-below-ram", "budget-over-limit"}

    def test_what_was_preloaded(self, tmp_path: Path) -> None:
        lib = tmp_path / "usr/lib"
        lib.mkdir(parents=True)
        (lib / "libjemalloc.so").symlink_to("libjemalloc.so.2")
        (lib / "libjemalloc.so.2").touch()
        named = (
            "/usr/lib/libjemalloc.so /nowhere/libmimalloc.so:libother.so $LIB/libjemalloc.so.2"
            " libjemalloc.so libgone.so.1 /usr/lib/libgone.so.1.0 /nowhere/libjemalloc.so"
        )
        seen = host(tmp_path, {"proc/self/maps": MAPS}, {"LD_PRELOAD": named})
        found = {one["name"]: (one["there"], one["allocator"]) for one in allocator.preloaded(seen)}
        assert found == {
            "/usr/lib/libjemalloc.so": (True, "jemalloc"),
            "/nowhere/libmimalloc.so": (False, "mimalloc"),
            "libother.so": (False, None),
            "$LIB/libjemalloc.so.2": (True, "jemalloc"),
            "libjemalloc.so": (True, "jemalloc"),  # the loader follows the link
            "libgone.so.1": (True, None),
            "/usr/lib/libgone.so.1.0": (True, None),  # replaced since
            "/nowhere/libjemalloc.so": (False, "jemalloc"),  # one of its name is mapped
        }

    def test_shared_memory_without_a_size_has_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = host(tmp_path, {"proc/self/mounts": "shm /dev/shm tmpfs rw,size=0 0 0\n"})
        for blocks, told in ((16, 65536), (0, None)):
            stat = SimpleNamespace(f_blocks=blocks, f_frsize=4096)
            monkeypatch.setattr(limits.os, "statvfs", lambda path, stat=stat: stat)
            assert limits._shared(seen) == told

    def test_what_was_preloaded_is_what_was_said_at_the_start(self, tmp_path: Path) -> None:
        late = Host(tmp_path, {"LD_PRELOAD": "/late.so"}, {}, 4)
        assert allocator.preloaded(late) == []

    def test_variables(self, tmp_path: Path) -> None:
        now = {
            "PATH": "/bin",
            "MALLOC_ARENA_MAX": "2",
            "MEMWEIR_IDLE_UNLOD": "5",
            "MEMWEIR_MM_EPHEMERAL": "1",
            "MEMWEIR_SOMETHING_ELSE": "1",
            "OMP_NUM_THREADS": "2",
        }
        then = {"PATH": "/bin", "OMP_NUM_THREADS": "2"}
        seen = Host(tmp_path, now, then, 4, frozenset({"numpy", "os"}))
        facts = environment.facts(seen)
        late = {name: one["late"] for name, one in facts["variables"].items()}
        assert "PATH" not in late
        assert late["MALLOC_ARENA_MAX"] is True
        assert late["OMP_NUM_THREADS"] is False
        assert facts["unknown"] == {
            "MEMWEIR_IDLE_UNLOD": "MEMWEIR_IDLE_UNLOAD",
            "MEMWEIR_SOMETHING_ELSE": None,
        }
        assert facts["imported"] == ["numpy"]


def test_variables_at_the_start_are_unknown_when_they_were_written_over(tmp_path: Path) -> None:
    path = tmp_path / "proc/self/environ"
    now = {"PATH": "/bin", "HOME": "/root"}
    assert started(tmp_path, now) is None
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PATH=/bin\0HOME=/home\0BROKEN\0")
    assert started(tmp_path, now) == {"PATH": "/bin", "HOME": "/home"}
    path.write_bytes(b"gunicorn: worker [app]\0\0\0")
    assert started(tmp_path, now) is None


def facts_of_all(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    facts = sound()
    for name, section in command.SECTIONS.items():
        monkeypatch.setattr(section, "facts", lambda host, name=name: facts[name])
    return facts


def test_run_exits_with_one_on_a_problem_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = facts_of_all(monkeypatch)
    monkeypatch.setattr(command.versions, "PAIRS", ())
    monkeypatch.setattr(command.versions, "UNDECLARED", ())
    assert command.run(as_json=False) == 0
    assert "nothing found" in capsys.readouterr().out
    facts["kernel"]["huge_pages"] = "always"
    assert command.run(as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["healthy"] is True
    facts["settings"]["error"] = "MEMWEIR_TUNE: no such name"
    assert command.run(as_json=True) == 1
    shown = json.loads(capsys.readouterr().out)
    assert not shown["healthy"]
    assert [one["severity"] for one in shown["findings"]] == ["problem", "warning"]
