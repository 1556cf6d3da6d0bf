"""An image cache as engines keep it, written down as plainly as possible."""

from __future__ import annotations

from collections.abc import Iterable


class NaiveLru:
    """Names and sizes in a list, least recently used first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[tuple[str, int]] = []

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.held]

    def serve(self, request: Iterable[tuple[str, int, bool]]) -> list[str]:
        """Takes the images of a request, with or without data; the names that it has lost."""
        request = list(request)
        for name, _, _ in request:
            self.touch(name)
        lost = []
        for name, nbytes, data in request:
            if data:
                self.drop(name)
                if nbytes <= self.capacity:
                    while sum(n for _, n in self.held) + nbytes > self.capacity:
                        self.held.pop(0)
                    self.held.append((name, nbytes))
            elif name in self.names:
                self.touch(name)
            else:
                lost.append(name)
        return lost

    def touch(self, name: str) -> None:
        for entry in [entry for entry in self.held if entry[0] == name]:
            self.held.remove(entry)
            self.held.append(entry)

    def drop(self, name: str) -> None:
        self.held = [entry for entry in self.held if entry[0] != name]
