"""Sessions of ONNX Runtime: closed rather than dropped, and pre-packed ones leave their pages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from memweir.errors import Busy, InUse, LoadFailed, Refused, Released, UnsupportedType
from memweir.models.adapters.managed import Managed, checked_release
from memweir.models.adapters.protocol import Sizes
from memweir.models.ladder import Rung

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Session", "is_session"]

PATIENCE = 10.0


def is_session(model: object) -> bool:
    """Whether it is one of ours: nobody has any before ``memweir.ort`` was imported."""
    kind = getattr(sys.modules.get("memweir.ort.handle"), "Session", None)
    return isinstance(kind, type) and isinstance(model, kind)


class Session(Managed):
    """The adapter of what ``mw.ort.session`` returns.

    ``release`` is called with the session before it is closed. Runs that go on although nobody has
    a lease are waited for, ``patience`` seconds at most; then the session is left to them.
    """

    name = "session"

    def __init__(
        self, release: Callable[[Any], object] | None = None, *, patience: float = PATIENCE
    ) -> None:
        super().__init__()
        self._release = checked_release(release)
        self._patience = patience
        self._rungs: tuple[Rung, ...] = (Rung.HOST,)
        self._on_device = self._left = False

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """The host, and its file as well for as long as its pages are as the file has them."""
        return self._rungs

    def adopt(self, model: Any, device: str | None) -> None:
        """Refuses everything but a session that is open and nobody else's."""
        if not is_session(model):
            raise UnsupportedType(
                f"the loader returned {type(model).__name__}, which is no session of memweir.ort"
            )
        if model.closed:
            raise LoadFailed("the loader returned a session that is closed")
        self._claim(model)
        self._left = False
        self._on_device = device is not None and device.partition(":")[0] != "cpu"
        if self._on_device:
            self._rungs = (Rung.DEVICE,)
        else:
            self._rungs = (Rung.HOST, Rung.MAPPED) if model.size.mapped else (Rung.HOST,)

    def nbytes(self, model: Any) -> Sizes | None:
        """What it took when it was opened; ``None`` where that is not known: on devices."""
        size = model.size
        if self._on_device or size.anon is None:
            return None
        return Sizes(host=max(0, size.anon), file=0 if self._left else size.mapped)

    def move(self, model: Any, to: Rung, device: str | None) -> None:
        """Drops the pages of its weights; on the way back there is nothing to do: they are read
        again as they are used.
        """
        if to not in self._rungs:
            raise UnsupportedType(f"this session has no rung {to.name.lower()!r}")
        if model.closed:
            raise Released("its session was closed by somebody else")
        if to is Rung.MAPPED:
            _drop(model, self)
        self._left = to is Rung.MAPPED

    def spent(self, model: Any) -> bool:
        """Whether its user has closed it: then another is to be opened."""
        return bool(model.closed)

    def dispose(self, model: Any) -> None:
        """Calls the user's release, if there is one, and closes the session without a trim, which
        comes at the end of the pass.
        """
        self._forget()
        try:
            if self._release is not None:
                self._release(model)
        finally:
            report = model.close(self._patience, trim=False)
        if report.held is not None or report.note is not None:
            raise InUse(report.held or report.note or "")


def _drop(model: Any, adapter: Session) -> None:
    done = model.offload()
    if done.again:
        raise Busy(done.why)
    if done.why is not None:
        # Pages that were written to stay so, and a file that was removed does not come back.
        adapter._rungs = (Rung.HOST,)
        raise Refused(done.why)
