"""Pools over a made-up machine: a clock that stands, memory that is counted, loads at a gate."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import memweir as mw
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def until(condition: Callable[[], object]) -> None:
    """Waits for what is certain to come; the hang guard ends it otherwise."""
    while not condition():
        time.sleep(0.0005)


class Model:
    """Weights of so many bytes, wherever they are."""

    def __init__(self, host: int = 0, device: int = 0, place: str | None = "cuda:0") -> None:
        self.host = host
        self.device = device
        self.place = place if device else "cpu"
        self.moves: list[str] = []
        self.alive = True

    def use(self) -> str:
        assert self.alive, "used after it was let go"
        return self.place


class Movable:
    """An adapter of models that may rest on a device, on the host, or in a mapped file."""

    name = "movable"

    def __init__(self, *rungs: Rung) -> None:
        self.rungs = rungs or (Rung.DEVICE, Rung.HOST)
        self.disposed = 0
        self.fail: list[BaseException] = []  # what the next moves raise

    def adopt(self, model: Any, device: str | None) -> None:
        if model is None:
            raise mw.LoadFailed("the loader returned None")

    def nbytes(self, model: Any) -> mw.Sizes:
        return mw.Sizes(model.host, model.device)

    def move(self, model: Any, to: Rung, device: str | None) -> None:
        if self.fail:
            model.place = "between"
            raise self.fail.pop(0)
        total = model.host + model.device
        model.host, model.device = (0, total) if to is Rung.DEVICE else (total, 0)
        if to is Rung.MAPPED:
            model.host = 0
            model.mapped = total
        elif hasattr(model, "mapped"):
            model.host = model.mapped
        model.place = {Rung.DEVICE: device, Rung.HOST: "cpu", Rung.MAPPED: "file"}[to]
        model.moves.append(model.place)

    def dispose(self, model: Any) -> None:
        assert model.alive, "let go twice"
        model.alive = False
        self.disposed += 1


class Clock:
    """It stands until it is told to go."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def __iadd__(self, seconds: float) -> Clock:
        self.now += seconds
        return self


class World:
    """What a pool measures and acts with, and how often it did."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.anon = 0
        self.passes: list[str] = []
        self.told: list[mw.Event] = []
        options.setdefault("idle", mw.Idle.never())
        options.setdefault("on_event", self.told.append)
        self.pool = mw.ModelPool(
            clock=self.clock,
            memory=lambda: SimpleNamespace(anon=self.anon, file=0),
            devices=lambda: None,
            collect=lambda: self.passes.append("gc"),
            trim=lambda: self.passes.append("trim"),
            **options,
        )
        self.loads: dict[str, int] = {}
        self.adapters: dict[str, Movable] = {}

    def add(
        self, key: str, size: int = MIB, *, device: str | None = None, **options: Any
    ) -> Movable:
        """A key whose model has so many bytes, on the device where one is named."""
        rungs = options.pop("rungs", (Rung.DEVICE, Rung.HOST) if device else (Rung.HOST,))
        adapter = self.adapters[key] = Movable(*rungs)
        takes = options.pop("takes", size)
        before = options.pop("before", lambda: None)
        options.setdefault("nbytes", size)

        def load() -> Model:
            before()
            self.loads[key] = self.loads.get(key, 0) + 1
            return Model(device=takes, place=device) if device else Model(host=takes)

        self.pool.add(key, load, device=device, adapter=lambda: adapter, **options)
        return adapter

    def use(self, key: str) -> str:
        """One short lease."""
        with self.pool.lease(key) as model:
            return model.use()

    def state(self, key: str) -> str:
        return self.pool.status().models[key].state

    def kinds(self, kind: str) -> list[mw.Event]:
        return [event for event in self.told if event.kind == kind]

    def after(self, seconds: float) -> mw.UnloadReport:
        """What the idle clock does so much later."""
        self.clock += seconds
        return self.pool.tick()


class Gate:
    """A load that waits to be told what to do."""

    def __init__(self) -> None:
        self.began = 0
        self.verdicts: list[Future[Any]] = []

    def __call__(self) -> Any:
        verdict: Future[Any] = Future()
        self.verdicts.append(verdict)
        self.began += 1
        return verdict.result()

    def reached(self, n: int = 1) -> Future[Any]:
        until(lambda: len(self.verdicts) >= n and self.began >= n)
        return self.verdicts[n - 1]


def in_thread(work: Callable[..., Any], *args: Any) -> Future[Any]:
    """What `work` comes to in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future


def waiters(pool: mw.ModelPool, key: str) -> int:
    """How many wait for a change of this model."""
    return len(pool._desk.entries[key].bells)
