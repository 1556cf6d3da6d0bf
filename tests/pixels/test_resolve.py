"""The way back: who is asked, in which order, and that only the very pixels are taken."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import memweir as mw
from memweir.pixels import live, resolve
from memweir.pixels.refs import JoinedRef, PixelRef

ARRAY = np.arange(12_000, dtype=np.float32).reshape(30, 400)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the caches and resolvers that other tests left."""
    monkeypatch.setattr(live, "_caches", {})
    monkeypatch.setattr(resolve, "_process", {})
    yield
    assert resolve._process == {}
    assert resolve._context.get() == ()


def lost(array: Any = ARRAY) -> Any:
    """A reference whose pixels nobody has any more, by way of a pickle."""
    cache = mw.PixelCache("16 MiB")
    ref = pickle.loads(pickle.dumps(mw.strip(array, cache, threshold=0).data))
    cache.clear()
    return ref


def test_nobody_has_it() -> None:
    ref = lost()
    for ask in (np.asarray, mw.materialize, PixelRef.torch):
        with pytest.raises(mw.MissingPixels) as missing:
            ask(ref)
        assert missing.value.digest == mw.hash_array(ARRAY).hex()
        for hint in (missing.value.digest, "mw.materialize()", "mw.resolvers()", "no recipe"):
            assert hint in str(missing.value)
    with pytest.raises(LookupError):
        mw.materialize({"deep": [ref]}, lambda ref: None)


def test_live_caches_are_found_and_dead_ones_forgotten() -> None:
    cache = mw.PixelCache("16 MiB")
    ref = pickle.loads(pickle.dumps(mw.strip(ARRAY, cache).data))
    assert cache in live.live_caches()
    assert np.asarray(ref).tobytes() == ARRAY.tobytes()
    del cache
    gc.collect()
    with pytest.raises(mw.MissingPixels):
        np.asarray(ref)
    alive = len(live._caches)
    for _ in range(100):
        mw.PixelCache(0)
    gc.collect()
    assert len(live._caches) <= alive + 1


def test_any_cache_will_do() -> None:
    ref, other = lost(), mw.PixelCache("16 MiB")
    misses = other.stats().misses
    with pytest.raises(mw.MissingPixels):
        np.asarray(ref)
    assert other.stats().misses == misses
    digest, pixels = other.put_array(ARRAY)
    assert (digest, pixels is None) == (ref.digest, False)
    assert np.asarray(ref).tobytes() == ARRAY.tobytes()


def test_resolvers_are_asked_in_order() -> None:
    asked: list[str] = []

    def named(name: str, answer: Any = None) -> Any:
        def resolver(ref: PixelRef) -> Any:
            asked.append(name)
            return answer

        return resolver

    ref = lost()
    with (
        mw.resolvers(named("outer")),
        mw.resolvers(named("inner 1"), named("inner 2")),
    ):
        first = mw.resolvers(named("process, first"), named("process, last", ARRAY))
        second = mw.resolvers(named("process, later"))
        try:
            assert mw.materialize(ref, named("given")) is ARRAY
        finally:
            first.remove()
            second.remove()
            second.remove()
    order = ["given", "inner 1", "inner 2", "outer", "process, later", "process, first"]
    assert asked == [*order, "process, last"]


def test_caches_come_before_resolvers() -> None:
    cache = mw.PixelCache("16 MiB")
    ref = mw.strip(ARRAY, cache).data

    def resolver(ref: PixelRef) -> Any:
        raise AssertionError("asked")

    assert mw.materialize(ref, resolver).tobytes() == ARRAY.tobytes()


def test_resolvers_may_answer_with_any_kind_of_array() -> None:
    tensor = torch.from_numpy(ARRAY.copy())
    named = {"grid": np.zeros(3), "array": ARRAY}
    for answer in (ARRAY, ARRAY.T.copy().T, tensor, tensor.t().contiguous().t(), named):
        back = mw.materialize(lost(), lambda ref, answer=answer: answer)
        assert (type(back), back.dtype) == (np.ndarray, ARRAY.dtype)
        assert back.tobytes() == ARRAY.tobytes()
        back = mw.materialize(lost(tensor), lambda ref, answer=answer: answer)
        assert type(back) is torch.Tensor
        assert torch.equal(back, tensor)
        assert back.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(60, 70).to(torch.bfloat16),
        torch.randn(60, 70, dtype=torch.complex64).conj(),
        torch.randn(60, 70, dtype=torch.complex128).t(),
        torch.rand(600) > 0.5,
        torch.randn(5).to(torch.float8_e5m2),
        torch.zeros(0, 3),
        torch.tensor(1.5),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)
def test_tensors_of_a_resolver(tensor: Any) -> None:
    plain = tensor.resolve_conj()
    bits = plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    ref = lost(plain)
    back = mw.materialize(ref, lambda ref: plain)
    assert back.dtype == plain.dtype
    assert back.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == bits
    with mw.resolvers(lambda ref: plain):
        assert np.asarray(ref).tobytes() == bits


def test_the_first_right_answer_is_taken() -> None:
    ref = lost()
    wrong = [ARRAY + 1, ARRAY.astype(np.float64), ARRAY[:1], {"other": ARRAY}]
    for answer in wrong:
        back = mw.materialize(ref, lambda ref, answer=answer: answer, lambda ref: ARRAY)
        assert back is ARRAY


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (ARRAY + 1, mw.hash_array(ARRAY + 1).hex()),
        (ARRAY.astype(">f4"), mw.hash_array(ARRAY.astype(">f4")).hex()),
        (ARRAY.reshape(-1), mw.hash_array(ARRAY.reshape(-1)).hex()),
        ({"array ": ARRAY}, None),
        ({}, None),
    ],
)
def test_other_pixels_are_a_mismatch(answer: Any, got: str | None) -> None:
    ref = lost()
    with pytest.raises(mw.PixelMismatch) as mismatch:
        mw.materialize(ref, lambda ref: answer, lambda ref: None)
    assert (mismatch.value.expected, mismatch.value.got) == (ref.digest.hex(), got)


def test_no_key_reaches_what_is_kept_by_content() -> None:
    cache = mw.PixelCache("16 MiB")
    ref = pickle.loads(pickle.dumps(mw.strip(ARRAY, cache).data))
    for other in (ARRAY + 1, {"other": ARRAY}):
        cache.put(ref.digest, other)
        assert np.asarray(ref).tobytes() == ARRAY.tobytes()
    cache.clear()
    cache.put(ref.digest, ARRAY)
    with pytest.raises(mw.MissingPixels):
        np.asarray(ref)
    assert mw.materialize(ref, lambda ref: ARRAY) is ARRAY


def test_what_a_resolver_raises_goes_through() -> None:
    def resolver(ref: PixelRef) -> Any:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), mw.resolvers(resolver):
        np.asarray(lost())
    for answer in ([1, 2], "text", np.array([None])):
        with pytest.raises(mw.UnsupportedType):
            mw.materialize(lost(), lambda ref, answer=answer: answer)
    for wrong in (None, {}, ARRAY):
        with pytest.raises(TypeError, match="cannot be called"):
            mw.resolvers(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="cannot be called"):
            mw.materialize([], wrong)  # type: ignore[arg-type]


def test_a_context_ends_with_its_block_even_by_an_error() -> None:
    ref = lost()

    def work() -> None:
        with mw.resolvers(lambda ref: ARRAY):
            assert np.asarray(ref) is ARRAY
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    with pytest.raises(mw.MissingPixels):
        np.asarray(ref)


def test_a_context_is_not_seen_by_other_threads_and_the_process_is() -> None:
    ref, seen = lost(), list[Any]()

    def look() -> None:
        try:
            seen.append(np.asarray(ref))
        except mw.MissingPixels as missing:
            seen.append(missing)

    def in_thread(context: contextvars.Context) -> Any:
        thread = threading.Thread(target=context.run, args=(look,))
        thread.start()
        thread.join()
        return seen.pop()

    empty = contextvars.Context()
    with mw.resolvers(lambda ref: ARRAY):
        assert isinstance(in_thread(empty), mw.MissingPixels)
        assert in_thread(contextvars.copy_context()) is ARRAY
    installed = mw.resolvers(lambda ref: ARRAY)
    assert in_thread(empty) is ARRAY
    installed.remove()
    assert isinstance(in_thread(empty), mw.MissingPixels)


def test_tasks_have_their_own_context() -> None:
    ref, other = lost(), lost(ARRAY * 2)

    async def task(array: Any, wanted: Any, unwanted: Any) -> None:
        with mw.resolvers(lambda ref: array if ref.digest == mw.hash_array(array) else None):
            for _ in range(5):
                await asyncio.sleep(0)
                assert np.asarray(wanted) is array
                assert await asyncio.to_thread(np.asarray, wanted) is array
                with pytest.raises(mw.MissingPixels):
                    np.asarray(unwanted)

    async def main() -> None:
        double = ARRAY * 2
        await asyncio.gather(task(ARRAY, ref, other), task(double, other, ref))

    asyncio.run(main())


def test_writable_gives_everyone_an_array_of_their_own() -> None:
    cache = mw.PixelCache("16 MiB")
    ref, same = mw.strip(ARRAY, cache).data, mw.strip(ARRAY.copy(), cache).data
    one, other, again = mw.materialize([ref, same, ref], writable=True)
    one[:] = 0
    assert again is one
    assert other.tobytes() == ARRAY.tobytes()
    assert np.asarray(ref).tobytes() == ARRAY.tobytes()
    theirs = ARRAY.copy()
    mine = mw.materialize(lost(), lambda ref: theirs, writable=True)
    mine[:] = 0
    assert theirs.tobytes() == ARRAY.tobytes()


def test_views_are_verified_once_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = mw.PixelCache("16 MiB")
    s = mw.strip([ARRAY, ARRAY.copy(), ARRAY.copy()], cache)
    assert len(s.refs) == 3
    found = []
    find = resolve._Restore._find
    monkeypatch.setattr(
        resolve._Restore, "_find", lambda self, ref: found.append(ref) or find(self, ref)
    )
    views = mw.materialize(s.data)
    assert len(found) == 1
    assert views[0] is views[2]


def test_joined_references_ask_for_each_image() -> None:
    parts = [lost(ARRAY[:10]), lost(ARRAY[10:])]
    whole = JoinedRef("concat", parts)
    assert mw.materialize(whole, lambda ref: ARRAY[:10], lambda ref: ARRAY[10:]).tobytes() == (
        ARRAY.tobytes()
    )
    with pytest.raises(mw.MissingPixels) as missing:
        mw.materialize(whole, lambda ref: ARRAY[:10] if ref == parts[0] else None)
    assert missing.value.digest == parts[1].digest.hex()
    padded = JoinedRef("pad", [lost(ARRAY[:10, :7]), lost(ARRAY[10:])])
    back = mw.materialize(
        padded, lambda ref: ARRAY[:10, :7] if ref == padded.parts[0] else ARRAY[10:]
    )
    assert back[:10, :7].tobytes() == ARRAY[:10, :7].tobytes()
    assert not back[:10, 7:].any()
    assert back[10:].tobytes() == ARRAY[10:].tobytes()


def test_resolvers_may_resolve() -> None:
    inner, outer = lost(ARRAY), lost(ARRAY * 2)
    with mw.resolvers(
        lambda ref: np.asarray(inner) * 2 if ref == outer else None,
        lambda ref: ARRAY if ref == inner else None,
    ):
        assert np.asarray(outer).tobytes() == (ARRAY * 2).tobytes()


def test_nested_data_without_references_is_itself() -> None:
    data = {"a": [1, (2, np.zeros(3))]}
    assert mw.materialize(data) is data


def test_bfloat16_without_a_tensor_needs_its_numpy_type() -> None:
    array = np.arange(5000).astype(ml_dtypes.bfloat16)
    back = mw.materialize(lost(array), lambda ref: array)
    assert back is array


CHILD = """
import pickle, sys, warnings
import numpy as np
import memweir as mw
warnings.simplefilter("error")
data = pickle.load(sys.stdin.buffer)
assert "torch" not in sys.modules
try:
    mw.materialize(data)
except mw.MissingPixels as missing:
    print(missing.digest)
    print(missing)
array = np.arange(12_000, dtype=np.float32).reshape(30, 400)
with mw.resolvers(lambda ref: {ref.name: array, "other": None}):
    assert np.asarray(data["x"][0]).tobytes() == array.tobytes()
mw.PixelCache("16 MiB").put("other", array)
cache = mw.PixelCache("16 MiB")
cache.put_array(array)
print(mw.hash_array(mw.materialize(data)["x"][0]).hex())
"""


def test_another_process() -> None:
    cache = mw.PixelCache("16 MiB")
    s = mw.strip({"x": [ARRAY], "tag": "t"}, cache)
    child = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CHILD],
        input=pickle.dumps(s.data),
        capture_output=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr.decode()
    digest, message, again = child.stdout.decode().splitlines()
    assert digest == again == mw.hash_array(ARRAY).hex()
    assert "mw.resolvers()" in message
    assert child.stderr == b""


FORK = """
import os
import numpy as np
import memweir as mw
cache = mw.PixelCache("16 MiB")
array = np.arange(50_000)
ref = mw.strip(array, cache).data
mw.resolvers(lambda ref: None)
child = os.fork()
cache.clear()
assert np.asarray(ref).tobytes() == array.tobytes()
assert mw.strip(array + 1, cache).left == ()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_child_keeps_references_and_resolvers() -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", FORK]
    child = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (child.returncode, child.stderr) == (0, b"")
