"""Interned sources and the process around them: resident memory, forks, exit, imports."""

from __future__ import annotations

import os
import sys

import pytest
from intern_kit import python

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# Long strings go back to the system when they are freed, so that what is resident is what
# somebody holds, and no allocator's habit; jemalloc's under a preload of it.
FREED = {
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0",
}

ROLLOUTS = """
    import base64, gc, json, random, sys
    import memweir as mw
    from memweir.pixels import unique

    MIB = 1 << 20
    ROLLOUTS, TURNS, SIZE = 6, 6, 400_000
    DISTINCT = ROLLOUTS * TURNS * SIZE

    def anon():
        with open("/proc/self/status") as status:
            return next(int(l.split()[1]) << 10 for l in status if l.startswith("RssAnon"))

    def image(rollout, turn):
        payload = random.Random(f"{rollout} {turn}").randbytes(SIZE * 3 // 4)
        source = "data:image/png;base64," + base64.b64encode(payload).decode()
        return source if kind == "text" else source.encode()

    def received(history):
        '''The same messages as a server or a message queue gives them: nothing is shared.'''
        if kind == "text":
            return json.loads(json.dumps(history))
        return [{"content": [{"bytes": bytes(bytearray(m["content"][0]["bytes"]))}]}
                for m in history]

    def rollouts(keep):
        for rollout in range(ROLLOUTS):
            history = []
            for turn in range(TURNS):
                history = received(mw.restore_sources(history))
                history.append({"content": [{"bytes": image(rollout, turn)}]})
                history = keep(history)
                yield history

    def growth(keep):
        '''Resident bytes over the baseline: with all turns held, dropped, and collected.'''
        steps = list(rollouts(keep))
        held = anon() - base
        del steps
        dropped = anon() - base
        gc.collect()
        return held, dropped, anon() - base

    gc.disable()
    base = 0
    growth(lambda history: mw.intern_sources(history[:0]).data)  # whatever is imported for it
    base = anon()
"""


@linux
@pytest.mark.parametrize("kind", ["text", "swept text", "bytes"])
def test_rollouts_take_what_their_distinct_sources_take(kind: str) -> None:
    python(
        f"""
    kind = {kind.rpartition(" ")[2]!r}
    {ROLLOUTS}
    if {kind == "swept text"}:
        unique.MORTAL = False
    plain, _, _ = growth(lambda history: history)
    assert plain > 3 * DISTINCT  # or nothing would be saved
    base = anon()
    for cycle in range(4):
        keep = (lambda history: mw.intern_sources(history, inplace=True).data) if cycle % 2 else (
            lambda history: mw.intern_sources(history).data)
        held, dropped, collected = growth(keep)
        assert DISTINCT - MIB < held < DISTINCT + 3 * MIB, held
        if kind == "text" and unique.MORTAL:
            assert dropped < 2 * MIB, dropped  # with the last user, and without a collection
        assert collected < 2 * MIB, collected
    """,
        **FREED,
    )


@linux
def test_the_next_call_lets_go_where_no_collection_runs() -> None:
    python(
        f"""
    kind = "bytes"
    {ROLLOUTS}
    mw.intern_sources([])
    base = anon()
    for cycle in range(3):
        steps = list(rollouts(lambda history: mw.intern_sources(history).data))
        del steps
        mw.intern_sources([])
        assert anon() - base < 2 * MIB
    """,
        **FREED,
    )


@linux
@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_store_holds_them_once_and_within_its_budget(kind: str) -> None:
    python(
        f"""
    kind = {kind!r}
    {ROLLOUTS}
    store = mw.PixelCache("64 MiB")
    for cycle in range(3):
        held, dropped, _ = growth(lambda history: mw.intern_sources(history, store=store).data)
        assert DISTINCT - MIB < held < DISTINCT * 1.05 + 3 * MIB, held
        assert len(store) == ROLLOUTS * TURNS
        store.clear()
        gc.collect()
        assert anon() - base < 2 * MIB
    # Half of it fits: the other half is interned, so that no source is there twice.
    store = mw.PixelCache(DISTINCT // 2)
    for cycle in range(3):
        held, dropped, _ = growth(lambda history: mw.intern_sources(history, store=store).data)
        assert DISTINCT - MIB < held < DISTINCT * 1.05 + 3 * MIB, held
        assert store.stats().peak_bytes <= store.budget
        assert 10 < len(store) < ROLLOUTS * TURNS
        gc.collect()
        assert anon() - base < store.budget + 2 * MIB
    """,
        **FREED,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_in_the_middle_of_everything() -> None:
    python(
        """
    import json, os, pathlib, signal, sys, tempfile, threading, warnings
    import memweir as mw
    from memweir.pixels import unique

    warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is the point here
    sys.setswitchinterval(1e-5)
    store = mw.PixelCache("256 KiB")
    path = pathlib.Path(tempfile.mkdtemp()) / "image"
    path.write_bytes(b"image" * 1000)
    stop = threading.Event()
    wrong = []

    def messages(seed):
        url = f"data:image/png;base64,{seed:04}" + "A" * 9000
        return [{"url": url}, {"url": url + "", "bytes": f"{seed}".encode() * 5000}]

    def work(seed):
        while not stop.is_set():
            seed = (seed + 7) % 50
            expected = messages(seed)
            try:
                unique.MORTAL = seed % 2 == 0
                assert mw.intern_sources(messages(seed)).data == expected
                s = mw.intern_sources(messages(seed), store=store)
                assert mw.restore_sources(s.data) == expected
                assert mw.source_id(expected[0]["url"]) == mw.hash_bytes(expected[0]["url"])
                assert mw.source_id(path) == mw.hash_bytes(b"image" * 1000)
            except Exception as error:
                wrong.append(error)
                raise

    kept = mw.intern_sources(messages(3), store=store)
    mw.restore_sources(kept.data), mw.source_id(path)  # no fork in the middle of an import
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            code = 1
            try:
                assert mw.restore_sources(kept.data) == messages(3)
                for seed in range(60):
                    s = mw.intern_sources(messages(seed), store=store)
                    assert mw.restore_sources(json.loads(json.dumps(s.data))) == messages(seed)
                    assert mw.intern_sources(messages(seed)).data == messages(seed)
                    assert mw.source_id(path) == mw.hash_bytes(b"image" * 1000)
                assert store.stats().bytes <= store.budget
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert mw.restore_sources(kept.data) == messages(3)
    """
    )


def test_exit_with_everything_still_there() -> None:
    out = python(
        """
        import memweir as mw
        from memweir.pixels import unique

        unique.MORTAL = False
        store = mw.PixelCache("1 MiB")
        kept = mw.intern_sources([b"A" * 9000, "A" * 9000])
        s = mw.intern_sources([b"B" * 9000, "B" * 9000], store=store)
        cycle = [kept, s]
        cycle.append(cycle)
        mw.hidden = cycle
        print("done")
        """
    )
    assert out == "done\n"


def test_nothing_heavy_is_imported() -> None:
    out = python(
        """
        import sys, threading
        import memweir as mw

        names = ["source_id", "intern", "unique", "source_refs", "sources", "spelling"]
        print([name for name in names if f"memweir.pixels.{name}" in sys.modules])
        mw.source_id("data:,x")
        mw.restore_sources(mw.intern_sources([b"A" * 9000], store=mw.PixelCache("1 MiB")).data)
        heavy = ["PIL", "torch", "transformers", "asyncio", "logging", "pydantic"]
        print([name for name in heavy if name in sys.modules], threading.active_count())
        """
    )
    assert out == "[]\n[] 1\n"


def test_text_and_bytes_are_never_compared() -> None:
    """Python can be asked to refuse that."""
    out = python(
        """
        import subprocess, sys

        code = '''
        import memweir as mw
        from memweir.pixels import unique
        for unique.MORTAL in (True, False):
            data = ["A" * 9000, b"A" * 9000, "A" * 9000 + ""]
            assert mw.intern_sources(data).distinct == 2
            store = mw.PixelCache("1 MiB")
            assert mw.restore_sources(mw.intern_sources(data, store=store).data) == data
        '''
        import textwrap
        done = subprocess.run([sys.executable, "-bb", "-c", textwrap.dedent(code)])
        print(done.returncode)
        """
    )
    assert out == "0\n"
