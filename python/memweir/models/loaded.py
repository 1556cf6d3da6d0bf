"""A model for one use: loaded, used and let go, with the same proof as a pool's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from memweir.errors import Released
from memweir.models.adapters.auto import chooser
from memweir.models.adapters.protocol import NOTHING
from memweir.models.release import Doomed, Release
from memweir.models.unpin import unpin

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Concatenate

    from memweir.models.adapters.protocol import Adapter
    from memweir.models.report import UnloadReport

__all__ = ["Loaded", "loaded"]

M = TypeVar("M")
T = TypeVar("T")
P = ParamSpec("P")


class Loaded(Generic[M]):
    """What :func:`loaded` returns; ``report`` is there when the model was let go."""

    report: UnloadReport | None = None

    def __init__(
        self,
        load: Callable[[], M],
        adapter: Callable[[M], Adapter],
        device: str | None,
        name: str,
        let_go: Release,
    ) -> None:
        self._load: Callable[[], M] | None = load
        self._fit = adapter
        self._device = device
        self._name = name
        self._let_go = let_go
        self._doomed: Doomed | None = None

    def __enter__(self) -> M:
        # Taken before it is called: of two threads that enter, one loads.
        load, self._load = self._load, None
        if load is None:
            raise Released(f"{self._name} was for one use, and that was made: call loaded() again")
        try:
            return self._take(load)
        except BaseException as error:
            unpin(error)  # the frames of a load keep what it had made
            self.report = self._let_go.tidy()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        doomed, self._doomed = self._doomed, None
        if doomed is None:
            return
        unpin(error)
        self.report = self._let_go([doomed])

    def run(self, use: Callable[Concatenate[M, P], T], *args: P.args, **named: P.kwargs) -> T:
        """What ``use(model, *args, **named)`` returns. Nothing here keeps the model meanwhile."""
        with self as model:
            try:
                return use(model, *args, **named)
            finally:
                del model

    async def arun(
        self, use: Callable[Concatenate[M, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        """:meth:`run` in a worker thread. Cancelled, it goes on there, and lets the model go."""
        import asyncio

        return await asyncio.to_thread(lambda: self.run(use, *args, **named))

    def _take(self, load: Callable[[], M]) -> M:
        model: M | None = load()
        try:
            adapter = self._fit(model)  # type: ignore[arg-type]
            adapter.adopt(model, self._device)
            promised = adapter.nbytes(model) or NOTHING
        except BaseException:
            model = None
            raise
        self._doomed = Doomed(self._name, model, adapter.dispose, promised, "used once")
        return model  # type: ignore[return-value]


def loaded(
    load: Callable[[], M],
    *,
    release: Callable[[M], object] | None = None,
    device: str | None = None,
    adapter: Adapter | None = None,
    name: str = "the model",
    let_go: Release | None = None,
) -> Loaded[M]:
    """A model for one use: ``mw.loaded(load).run(use, ...)``, or ``with mw.loaded(load) as model``.

    ``load()`` builds it; when the use is over, however it ends, ``release(model)`` is called if it
    is given, and what the model took goes back to the system and is measured: see ``report``. A
    load that fails leaves nothing either.

    A variable that still names the model behind a ``with`` block keeps it and its memory, and the
    report says so: ``del model`` at the block's end, or use :meth:`~Loaded.run`, which has none.
    Frames of an exception that leaves the block lose their variables, which would keep it, too.
    """
    from memweir._flight import is_async

    if not callable(load):
        raise TypeError(f"load is called, and {type(load).__name__} cannot be")
    if is_async(load):
        raise TypeError("load is called without an event loop: give a plain function")
    if adapter is not None and release is not None:
        raise ValueError("an adapter has its own release: give one of the two")
    fit = chooser("auto" if adapter is None else adapter, release)
    return Loaded(load, fit, device, name, let_go or Release())
