"""What a trim asks beside memweir: hooks of users and of libraries that are imported already."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from trim_kit import World, names, skipped

import memweir as mw
from memweir.process import hooks
from memweir.process.hooks import on_trim, registered


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(hooks, "_hooks", {})
    for module, _ in hooks.KNOWN.values():
        monkeypatch.delitem(sys.modules, module, raising=False)


@pytest.fixture
def world():
    return World(hooks=registered)


def test_a_hook_is_a_step_of_its_name_until_it_is_removed(world):
    calls = []
    handle = on_trim("mine", lambda: calls.append(1))
    assert names(world.trims.trim("hooks")) == ["buffers", "hooks.mine"]
    assert handle.remove() is True
    assert names(world.trims.trim("hooks")) == ["buffers", "hooks"]
    assert calls == [1]
    assert handle.remove() is False


def test_a_decorated_function_is_still_called_like_itself(world):
    @on_trim("mine")
    def mine():
        return 5

    assert mine() == 5
    assert "hooks.mine" in names(world.trims.trim("hooks"))
    assert mine.remove()


def test_a_second_of_the_same_name_takes_the_firsts_place():
    first, second = on_trim("same", int), on_trim("same", str)
    assert [hook.function for hook in registered()] == [str]
    assert first.remove() is False
    assert registered() == [second]


@pytest.mark.parametrize(
    ("args", "error"),
    [((1, int), TypeError), (("", int), ValueError), (("a", 3), TypeError)],
)
def test_bad_hooks_are_refused(args, error):
    with pytest.raises(error):
        on_trim(*args)
    assert registered() == []


def test_a_coroutine_function_is_refused():
    async def hook():
        pass

    with pytest.raises(TypeError, match="event loop"):
        on_trim("a", hook)


def module(monkeypatch, name, **has):
    made = SimpleNamespace(**has)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def test_pillow_gives_its_blocks_back(world, monkeypatch):
    calls = []
    core = SimpleNamespace(clear_cache=lambda: calls.append(1))
    module(monkeypatch, "PIL.Image", core=core)
    assert names(world.trims.trim("hooks"))[1:] == ["hooks.pillow"]
    assert calls == [1]


def test_a_pillow_without_its_core_is_told(world, monkeypatch):
    class Deferred:
        def __getattr__(self, name):
            raise ImportError("the _imaging C module is not installed")

    module(monkeypatch, "PIL.Image", core=Deferred())
    assert "ImportError" in world.trims.trim("hooks").step("hooks.pillow").failed
    module(monkeypatch, "PIL.Image")
    assert "hooks.pillow" in skipped(world.trims.trim("hooks"))


def test_pyarrow_releases_its_pool(world, monkeypatch):
    calls = []
    pool = SimpleNamespace(release_unused=lambda: calls.append(1))
    module(monkeypatch, "pyarrow", default_memory_pool=lambda: pool)
    assert world.trims.trim("hooks").step("hooks.pyarrow").failed is None
    assert calls == [1]
    module(monkeypatch, "pyarrow")
    assert "hooks.pyarrow" in skipped(world.trims.trim("hooks"))


@pytest.mark.parametrize("used", [False, True])
def test_torch_empties_caches_of_devices_that_are_in_use(world, monkeypatch, used):
    calls = []
    cuda = SimpleNamespace(is_initialized=lambda: used, empty_cache=lambda: calls.append("cuda"))
    c = SimpleNamespace(_host_emptyCache=lambda: calls.append("host"))
    mps = SimpleNamespace(is_available=lambda: used)
    module(monkeypatch, "torch", cuda=cuda, _C=c, backends=SimpleNamespace(mps=mps))
    module(monkeypatch, "torch.mps", empty_cache=lambda: calls.append("mps"))
    report = world.trims.trim("hooks")
    assert calls == (["cuda", "host", "mps"] if used else [])
    assert ("hooks.torch" in skipped(report)) is not used


def test_a_torch_that_is_half_imported_has_nothing_to_give(world, monkeypatch):
    module(monkeypatch, "torch")
    assert "no device in use" in skipped(world.trims.trim("hooks"))["hooks.torch"]


def test_one_may_put_ones_own_in_a_known_librarys_place(world, monkeypatch):
    module(monkeypatch, "pyarrow")
    calls = []
    on_trim("pyarrow", lambda: calls.append(1))
    assert names(world.trims.trim("hooks")) == ["buffers", "hooks.pyarrow"]
    assert calls == [1]


def test_no_library_is_imported_to_trim_it_and_those_imported_are_asked():
    code = (
        "import sys, memweir as mw\n"
        "report = mw.trim()\n"
        "print({'PIL', 'torch', 'pyarrow', 'asyncio', 'logging'} & set(sys.modules))\n"
        "import PIL.Image\n"
        "print(mw.trim().step('hooks.pillow').failed)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["set()", "None"]


def test_real_libraries_are_asked_without_starting_a_device():
    """By a trim and by an explanation: importing torch once is dear enough."""
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    code = (
        "import sys, torch, PIL.Image, memweir as mw\n"
        "steps = mw.trim('hooks').steps\n"
        "print(sorted(s.name for s in steps if s.name.startswith('hooks.')))\n"
        "print([s.failed for s in steps if s.failed is not None])\n"
        "print([p.name for p in mw.explain().parts if p.note.startswith('does not say')])\n"
        "print(torch.cuda.is_initialized(), mw.heap().allocator.kind == sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mw.heap().allocator.kind],
        capture_output=True,
        text=True,
        timeout=170,
        check=True,
    )
    asked, *others = done.stdout.splitlines()
    assert {"hooks.pillow", "hooks.torch"} <= set(ast.literal_eval(asked))
    assert others == ["[]", "[]", "False True"]


def test_output_buffers_of_caches_go_back_and_entries_stay():
    import numpy as np

    cache = mw.PixelCache("64 MiB")
    table = (np.arange(256) / 255 - 0.5).astype(np.float32)
    pixels = table[np.random.default_rng(0).integers(256, size=4 << 20)].reshape(4, 1024, 1024)
    assert cache.put("image", pixels)
    used = cache.stats().bytes
    assert cache.get("image")["array"].nbytes == 16 << 20
    kept = cache.stats().bytes
    assert kept >= used + (16 << 20)
    report = mw.trim("buffers")
    assert report.step("buffers").detail["freed"] >= 16 << 20
    assert cache.stats().bytes == used
    assert np.array_equal(cache.get("image")["array"], pixels)
