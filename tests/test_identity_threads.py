"""Identity among threads and processes: the GIL, writers, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import memweir as mw

LARGE = 12 << 20
BYTES = bytes(LARGE)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[list[int]]:
    """Runs `work` over and over in another thread; gives the times it was done."""
    stop, done = threading.Event(), [0]

    def loop() -> None:
        while not stop.is_set():
            work()
            done[0] += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class TestGil:
    @pytest.mark.parametrize(
        "hash_",
        [
            lambda a: mw.hash_bytes(BYTES),
            mw.hash_bytes,
            mw.hash_array,
            lambda a: mw.hash_array(torch.from_numpy(a)),
            lambda a: mw.hash_image(a.reshape(2048, -1, 3)),
            lambda a: mw.hash_many([a.reshape(2048, -1, 3)], threads=1),
            lambda a: mw.hash_value([BYTES]),
        ],
        ids=["bytes", "buffer", "array", "tensor", "image", "many", "value"],
    )
    def test_is_released(self, hash_: Callable[[np.ndarray], object]) -> None:
        array = np.zeros(LARGE, np.uint8)
        interval = sys.getswitchinterval()
        # From here on a thread runs only when another lets the GIL go of its own accord.
        sys.setswitchinterval(1000)
        try:
            with meanwhile(lambda: time.sleep(1e-5)) as done:
                for _ in range(1000):
                    before = done[0]
                    hash_(array)
                    if done[0] != before:
                        return
                pytest.fail("no other thread ran during any call")
        finally:
            sys.setswitchinterval(interval)


class TestWriters:
    """Another thread writes to what is hashed: any digest, no crash, and private memory."""

    def test_an_array(self) -> None:
        array = np.zeros((512, 512, 4), np.uint8)
        views = [array, array[..., :3], array[::2, ::-1], array.transpose(2, 1, 0)]
        with meanwhile(lambda: array.__setitem__(..., np.uint8(time.perf_counter_ns() & 255))):
            for _ in range(50):
                for view in views:
                    assert len(bytes(mw.hash_array(view))) == 32
        array[...] = 7
        assert mw.hash_array(array) == mw.hash_array(np.full((512, 512, 4), 7, np.uint8))

    def test_a_tensor(self) -> None:
        tensor = torch.zeros(1 << 18)
        with meanwhile(lambda: tensor.add_(1)) as done:
            while done[0] < 50:
                mw.hash_array(tensor)

    def test_an_image(self) -> None:
        image = Image.new("RGB", (512, 512))
        draw = ImageDraw.Draw(image)
        with meanwhile(lambda: draw.rectangle((0, 0, 511, 511), fill="red")) as done:
            while done[0] < 50:
                mw.hash_image(image)
        assert mw.hash_image(image) == mw.hash_image(Image.new("RGB", (512, 512), "red"))

    def test_memory_cannot_go_away_meanwhile(self) -> None:
        data = bytearray(1 << 20)
        refused = [0]

        def resize() -> None:
            try:
                data.append(0)
                data.pop()
            except BufferError:
                refused[0] += 1

        with meanwhile(resize):
            while refused[0] < 20:
                mw.hash_bytes(data)


class TestProcesses:
    def test_many_after_a_fork(self) -> None:
        code = """if True:
            import os, sys
            import numpy as np
            import memweir as mw
            images = [np.full((1024, 1024, 3), i, np.uint8) for i in range(6)]
            before = mw.hash_many(images, threads=4)
            child = os.fork()
            if child == 0:
                os._exit(0 if mw.hash_many(images, threads=4) == before else 1)
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
        run(code)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_fork_while_others_hash(self) -> None:
        code = """if True:
            import os, sys, threading
            import numpy as np
            import memweir as mw
            images = [np.full((700, 700, 3), i, np.uint8) for i in range(4)]
            expected = mw.hash_many(images)
            stop = threading.Event()
            def loop():
                while not stop.is_set():
                    mw.hash_many(images, threads=2)
            threads = [threading.Thread(target=loop) for _ in range(2)]
            for t in threads: t.start()
            codes = []
            for _ in range(10):
                child = os.fork()
                if child == 0:
                    os._exit(0 if mw.hash_many(images, threads=2) == expected else 1)
                codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            stop.set()
            for t in threads: t.join()
            sys.exit(any(codes))
        """
        run(code)

    def test_no_thread_is_left(self) -> None:
        code = """if True:
            import os, time
            import numpy  # starts a thread of its own
            import memweir as mw
            tasks = lambda: len(os.listdir("/proc/self/task"))
            before = tasks()
            mw.hash_many([bytes(2 << 20)] * 8, threads=6)
            until = time.monotonic() + 20  # the kernel's list lags behind a join
            while tasks() != before and time.monotonic() < until: pass
            assert tasks() == before, (tasks(), before)
        """
        run(code)
