"""The compiled part of memweir."""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from os import PathLike
from typing import Any, Final, Literal, Self, TypeAlias, final

import numpy as np
from typing_extensions import Buffer, disjoint_base

from .pixels.cache import Spec

__version__: str

_Part: TypeAlias = Digest | bytes | str
_Key: TypeAlias = _Part | tuple[_Part, ...]
_Array: TypeAlias = np.ndarray[Any, Any]

@disjoint_base
class Cache:
    """The compiled part of :class:`memweir.PixelCache`."""

    def __new__(cls, budget: int, compact: bool) -> Self: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: _Key, /) -> bool: ...
    @property
    def budget(self) -> int:
        """Bytes that may be owned."""

    def get(self, key: _Key) -> Pixels | None:
        """The entry of a key, kept in memory while the handle lives; decodes nothing."""

    def put(self, key: _Key, arrays: Any) -> bool:
        """Stores an array, or a mapping of names to arrays, copied.

        ``False``: it did not fit, nothing is kept under ``key``, and it is counted. Nothing is
        evicted for what then does not fit.

        Raises ``UnsupportedType`` for what is no array or holds Python objects, ``TypeError`` for
        other kinds of key or name, ``ValueError`` for an empty mapping.
        """

    def put_array(self, array: Any) -> tuple[Digest, Pixels | None]:
        """Stores an array by its content, copied and hashed in one pass.

        Returns ``hash_array(array)`` of the bytes that were stored and a handle on them; ``None``
        when they did not fit. An array that is there already is not stored twice. No key reaches
        it but its digest, by :meth:`get_array`.
        """

    def get_array(self, digest: Digest) -> Pixels | None:
        """The array of this digest that :meth:`put_array` stored; neither a hit nor a miss."""

    def put_exported(self, key: _Key, record: Buffer) -> bool:
        """Stores the entry of a record that ``px.export()`` has written, here or elsewhere.

        ``False`` when it does not fit. ``ValueError`` says what is wrong with a record that is
        damaged, of a newer version, or none. Nothing in the record is trusted, and with
        ``compact="auto"`` nothing is decoded: an entry's ``spec`` says how large its arrays are.
        """

    def remove(self, key: _Key) -> bool:
        """Removes an entry; what is in use goes with its last user. Whether there was one."""

    def _peek(self, key: _Key) -> Pixels | None: ...
    def _key(self, key: _Key) -> bytes: ...
    def _serve(
        self,
        key: _Key,
        arrays: Any,
        generation: int | None,
        reservation: Reservation | None = None,
    ) -> Pixels: ...
    def _reserve(self, nbytes: int) -> Reservation | None: ...
    @property
    def _generation(self) -> int: ...
    def _evict(self, to: int) -> int: ...
    def _resize(self, budget: int) -> int: ...
    def _clear(self) -> int: ...
    def _drop_outputs(self) -> int: ...
    def _stats(self) -> dict[str, int]: ...

@final
class Reservation:
    """Bytes put aside for a load in flight."""

    def release(self) -> None:
        """Gives the bytes back, if they were not used."""

@final
class Pixels(Mapping[str, _Array]):
    """An entry of a cache: arrays by name, kept in memory while this handle lives.

    ``px[name]`` is a read-only array. One in compact form is decoded anew on each access, into
    memory of its own; one that is stored as it is and has more than 4 KiB is a view that keeps the
    whole entry in memory while it, or any slice of it, lives; smaller ones are copies.
    """

    def __getitem__(self, name: str, /) -> _Array: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def keys(self) -> KeysView[str]: ...
    def values(self) -> ValuesView[_Array]: ...
    def items(self) -> ItemsView[str, _Array]: ...
    @property
    def spec(self) -> dict[str, Spec]:
        """Dtype token, shape and bytes of every array; decodes nothing."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, decoded."""

    @property
    def encoding(self) -> dict[str, str]:
        """How every array is stored: ``"raw"``, or its compact form in words."""

    @property
    def kept(self) -> bool:
        """Whether these bytes are in the cache's budget, or did not fit and are only lent."""

    def view(self, name: str) -> View:
        """An array as a read-only buffer."""

    def decode(self) -> dict[str, _Array]:
        """All arrays by name, as ``px[name]`` gives them, decoded in one call off the GIL."""

    def copy_into(self, name: str, out: Any) -> None:
        """Writes an array into ``out``: a writable numpy array, torch tensor on the CPU or buffer.

        Same dtype (``TypeError``) and shape (``ValueError``), any strides: a row of a batch, a
        transposed view. Compact forms are decoded straight into it. Off the GIL. What is read-only
        is a ``ValueError``, and so is a numpy scalar.
        """

    def export(self) -> bytes:
        """The entry as one checksummed record, in the form in which it is kept.

        ``put_exported`` of a cache in any process on any little-endian machine reads it.
        """

    def equals(self, name: str, array: Any) -> bool:
        """Whether ``array``, of any strides, has this one's dtype, shape and bytes. Off the GIL."""

    def digest(self, name: str) -> Digest:
        """``hash_array(px[name])``, off the GIL; computed anew each time."""

    @property
    def _serial(self) -> int: ...
    def _layouts(self) -> dict[str, tuple[str, int, tuple[int, ...], int]]: ...

@final
class View(Buffer):
    """One array of an entry as a read-only buffer.

    Dtypes that the buffer protocol has no letter for are exported as flat bytes.
    """

    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Descriptor:
    """What a reference says of one array; ``docs/refs.md`` gives the bytes.

    Digests are their 32 bytes. ``dtype`` is numpy's token, ``origin`` a path or URI or the encoded
    image, ``arguments`` JSON text that is not read here.

    Raises ``ValueError`` for digests of other lengths and arrays larger than the address space.
    """

    def __new__(
        cls,
        name: str,
        dtype: str,
        itemsize: int,
        shape: Sequence[int],
        digest: bytes,
        *,
        torch: bool = False,
        key: bytes | None = None,
        fingerprint: bytes | None = None,
        image: bytes | None = None,
        source: bytes | None = None,
        origin: str | bytes | None = None,
        arguments: str | None = None,
    ) -> Self: ...
    @staticmethod
    def decode(record: bytes) -> Descriptor:
        """Reads a record. Raises ``ValueError`` for anything that :meth:`encode` never gives."""

    def encode(self) -> bytes:
        """The record: the same bytes for the same values."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def itemsize(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def torch(self) -> bool: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def fingerprint(self) -> bytes | None: ...
    @property
    def image(self) -> bytes | None: ...
    @property
    def source(self) -> bytes | None: ...
    @property
    def origin(self) -> str | bytes | None: ...
    @property
    def arguments(self) -> str | None: ...

@final
class HeapJob:
    """A job that gives memory back to the system: running, or done.

    Equal to every other handle on the same job.
    """

    @property
    def joined(self) -> bool:
        """Whether the job ran already when this handle was asked for."""

    @property
    def done(self) -> bool: ...
    @property
    def steps(self) -> list[HeapStep]:
        """What was done so far; all of it once the job is done."""

    def wait(self, timeout: float | None = None) -> bool:
        """Waits, off the GIL, until it is done or so many seconds are over; whether it is done.

        Where no thread could be started for it, this does the work, however long that takes.
        """

    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class HeapStep:
    """One step of a job, whether it could be taken or not."""

    @property
    def name(self) -> str:
        """The allocator's call, or ``"sweep"``, ``"advice"``, ``"thread"`` (none could be started)
        or ``"fork"``.
        """

    @property
    def ok(self) -> bool: ...
    @property
    def why(self) -> str | None:
        """Why it was not done, or what it left undone."""

    @property
    def returned(self) -> int | None:
        """The allocator's own answer, which is no number of bytes but on macOS."""

    @property
    def seconds(self) -> float: ...
    @property
    def anon_before(self) -> int | None:
        """Anonymous memory of the process, resident, by the kernel's count."""

    @property
    def anon_after(self) -> int | None: ...
    @property
    def sweepers(self) -> int | None:
        """Threads that held an arena at the same time; 0 when there was nothing to sweep."""

    @property
    def arenas_seen(self) -> int | None:
        """Arenas that exist, the main one included."""

    @property
    def arenas_swept(self) -> int | None:
        """Of these, those with less than 384 KiB at their tops afterwards, whoever made it so."""

    @property
    def tops_before(self) -> int | None:
        """Free bytes at the tops of threads' arenas; also those that are not resident."""

    @property
    def tops_after(self) -> int | None: ...
    @property
    def trim_threshold(self) -> int | None:
        """The trim threshold that was set after the sweep; ``None`` when it was not touched."""

    @property
    def unadvised_ranges(self) -> int | None:
        """Ranges of glibc's heaps with little in them, which take no huge pages now."""

    @property
    def unadvised_bytes(self) -> int | None:
        """Bytes of these ranges, most of which are not resident."""

@final
class Claims:
    """Who holds what, in numbers: slots that many hold and one changes, and bytes of accounts.

    Nothing of Python is kept in it and no call of it waits, so that it can be asked from anywhere,
    finalizers included. Whoever waits does so elsewhere and asks again. No number is ever of two
    things, in this process or in one forked from it. A forked child finds nobody in it.
    """

    def __new__(cls) -> Self: ...
    def slot(self) -> int:
        """A new slot, closed."""

    def forget(self, slot: int) -> bool:
        """Forgets a slot that nobody holds or changes; whether it did."""

    def hold(self, slot: int, owner: int, drained: bool = False) -> int | None:
        """A claim on an open slot; ``None`` when it is closed, or drains and not ``drained``."""

    def release(self, slot: int, claim: int) -> tuple[int, bool] | None:
        """Ends a claim: how many are left, and whether the slot drains. ``None``: no such claim."""

    def begin(self, slot: int, idle: bool = True) -> int | None:
        """Takes the turn to change a slot.

        With ``idle`` only while nobody holds it, and it is closed in the same step. ``None`` when
        another has the turn or somebody holds it.
        """

    def end(self, slot: int, turn: int, opened: bool, owner: int | None = None) -> int | None:
        """Ends a turn, leaving the slot open or closed.

        With ``owner`` the result is a claim on what was opened, which nobody could come before.
        """

    def drain(self, slot: int, on: bool = True) -> int:
        """Refuses new claims, or no longer; how many there are."""

    def look(self, slot: int) -> ClaimSlot | None: ...
    def account(self, limit: int | None = None) -> int:
        """A new account of bytes; ``None`` is no limit."""

    def limit(self, account: int, limit: int | None = None) -> bool: ...
    def usage(self, account: int) -> ClaimUsage | None: ...
    def queue(self, accounts: Sequence[int]) -> int:
        """A ticket: a place in the line for bytes of these accounts."""

    def leave(self, ticket: int) -> None: ...
    def reserve(
        self,
        wanted: Sequence[tuple[int, int]],
        *,
        rest: bool = False,
        ticket: int | None = None,
        jump: bool = False,
    ) -> tuple[int | None, list[tuple[int, int]], bool]:
        """Promises bytes of accounts, all of them or none.

        A permit; else ``None``, what each account lacks, and whether somebody is before it in the
        line. ``rest`` takes all that is left, where that is more. ``jump`` passes the line.
        """

    def settle(
        self, permit: int, exact: Sequence[tuple[int, int]], extra: int | None = None
    ) -> list[tuple[int, int]] | None:
        """Makes a permit stand for exactly these bytes, which exist; ``extra`` goes into it.

        ``None``, or what the accounts lack, and then all is as it was.
        """

    def leaving(self, permit: int) -> bool:
        """Notes that its bytes are on their way out; whether there is such a permit."""

    def free(self, permit: int) -> bool:
        """Gives its bytes back; whether there was such a permit."""

@final
class ClaimSlot:
    """A slot at one moment; ``holders`` are pairs of claim and owner, oldest first."""

    @property
    def open(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    @property
    def epoch(self) -> int: ...
    @property
    def turn(self) -> int | None: ...
    @property
    def holders(self) -> list[tuple[int, int]]: ...

@final
class ClaimUsage:
    """An account at one moment, in bytes; ``held`` includes what is ``leaving``."""

    @property
    def limit(self) -> int: ...
    @property
    def promised(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def leaving(self) -> int: ...
    @property
    def peak(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

def heap_job(release: bool = True, sweep: bool = True) -> HeapJob:
    """Has a thread that runs no Python give back what the allocator keeps, or joins one that does.

    ``release`` is the allocator's own way. ``sweep`` goes on to the tops of glibc's arenas, and
    takes the advice of huge pages back for what is nearly empty in them.
    """

def heap_allocator() -> tuple[str, str | None, str | None]:
    """Kind, version and object of the allocator."""

def heap_stats() -> tuple[int | None, int | None, int | None, int | None, int | None]:
    """What the allocator counts: in use, free, mapped, arenas and their tops."""

def heap_tune(knob: str, value: int) -> tuple[bool, str | None]:
    """Sets one knob of the live allocator: whether it took effect, and what there is to say."""

def heap_late() -> str | None:
    """Why tuning comes too late for what was allocated before; ``None`` when it does not."""

def _after_fork_in_child() -> None: ...

_Algorithm: TypeAlias = Literal["blake3", "sha256"]

@final
class Digest:
    """32 bytes that name a content: immutable, ordered, hashable, picklable.

    Digests of different kinds of thing (bytes, arrays, images, nested data) never meet, nor do
    those of different algorithms. ``docs/identity.md`` defines them.
    """

    def __new__(cls, value: bytes, /) -> Self:
        """The digest with these bytes. Raises ``ValueError`` unless there are 32."""

    @staticmethod
    def from_hex(text: str, /) -> Digest:
        """Reads what :meth:`hex` wrote. Raises ``ValueError`` unless it is 64 hex digits."""

    def hex(self) -> str:
        """64 lower-case hexadecimal digits."""

    def __bytes__(self) -> bytes: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __lt__(self, other: Digest, /) -> bool: ...
    def __le__(self, other: Digest, /) -> bool: ...
    def __gt__(self, other: Digest, /) -> bool: ...
    def __ge__(self, other: Digest, /) -> bool: ...

def hash_bytes(data: Buffer | str, /, *, algorithm: _Algorithm = "blake3") -> Digest:
    """Digest of the bytes of ``data``: bytes, text (as UTF-8), or any buffer in C order.

    Raises ``UnsupportedType`` for anything else and ``UnicodeEncodeError`` for lone surrogates.
    """

def hash_file(
    path: str | bytes | PathLike[str] | PathLike[bytes], /, *, algorithm: _Algorithm = "blake3"
) -> Digest:
    """``hash_bytes`` of a file's content, read a block at a time. Raises ``OSError``."""

def hash_array(array: Any, /, *, algorithm: _Algorithm = "blake3") -> Digest:
    """Digest of an array's element type, byte order, shape and elements; strides do not matter.

    ``array`` is a numpy array or scalar of any dtype but ``object``, a dense torch tensor on the
    CPU, or a buffer. A tensor's digest is that of the numpy array with the same elements.

    Raises ``UnsupportedType`` for Python objects as elements, masked arrays, element types without
    a name of their own, tensors elsewhere, and everything else.
    """

def hash_image(
    image: Any, /, *, shape: Sequence[int] | None = None, algorithm: _Algorithm = "blake3"
) -> Digest:
    """Digest of an image: mode, size, palette, transparency, orientation and pixels.

    ``image`` is a Pillow image (its current frame, decoded now if it was not yet), ``uint8`` of
    shape ``(H, W)`` or ``(H, W, C)`` with 1 to 4 channels from numpy or torch, or bytes with such
    a ``shape``. All three give one digest for the same L, LA, RGB or RGBA pixels.

    Raises ``ValueError`` for a shape that is no image or does not fit, ``UnsupportedType`` for
    other types and dtypes, and whatever Pillow raises when it decodes.
    """

def hash_value(value: Any, /, *, algorithm: _Algorithm = "blake3") -> Digest:
    """Digest of nested plain data, by type and content.

    None, bool, int of any size, float, str, bytes, list, tuple, dict (in any order), ``Digest``,
    numpy arrays and scalars, torch tensors and Pillow images; exactly these types.

    Raises ``UnsupportedType`` for any other type, ``ValueError`` for more than 200 levels, for
    containers that contain themselves and for lone surrogates.
    """

def hash_many(
    objects: Iterable[Any], /, *, threads: int | None = None, algorithm: _Algorithm = "blake3"
) -> list[Digest]:
    """``hash_image`` of each Pillow image, array and tensor, ``hash_bytes`` of each other object.

    At most ``threads`` threads share the objects, one object to a thread; ``None``: as many as
    there are cores, at most 8, and no more than one for each mebibyte. They end with the call.
    """

@final
class Memory:
    """What this process uses and may use, in bytes. ``None`` is what this system does not tell.

    The first five were read by the call; the others are read when they are first asked for, and
    then stay what they are. Asked for in a forked child, what was not read yet is ``None``.
    """

    rss: Final[int | None]
    """Resident: pages in memory, those shared with other processes included."""
    anon: Final[int | None]
    """Resident and of no file and no shared memory: what only this process can give back."""
    charge: Final[int | None]
    """Charged to the process's cgroup: all its processes, and file pages it has read."""
    limit: Final[int | None]
    """The least of :func:`limits`, as it was at most two seconds ago."""
    limit_source: Final[str | None]
    """Who sets it: a cgroup's file, ``"RLIMIT_AS"``, ``"RLIMIT_DATA"`` or ``"host"``."""
    file: Final[int | None]
    """Resident pages of mapped files."""
    shmem: Final[int | None]
    """Resident pages of shared memory."""
    swap: Final[int | None]
    """Swapped out."""
    peak: Final[int | None]
    """The most that was ever resident."""
    working_set: Final[int | None]
    """``charge`` less the file pages that the cgroup would drop first."""
    available: Final[int | None]
    """What the host could still give out; its own view, not the cgroup's."""
    pressure: Final[Pressure | None]
    """How long memory was waited for."""
    pss: Final[int | None]
    """Resident, shared pages in part; only with ``detail=True``."""
    uss: Final[int | None]
    """Resident pages of this process alone; only with ``detail=True``."""
    huge: Final[int | None]
    """Anonymous memory in huge pages; only with ``detail=True``."""
    detail_seconds: Final[float | None]
    """What reading the detail took."""
    def as_dict(self) -> dict[str, Any]:
        """All of it, as plain data."""

@final
class Pressure:
    """Time in which ``some`` task, or the ``full`` set of them, waited for memory.

    In percent of the last 10, 60 and 300 seconds, and in microseconds in all.
    """

    some_avg10: Final[float]
    some_avg60: Final[float]
    some_avg300: Final[float]
    some_total: Final[int]
    full_avg10: Final[float]
    full_avg60: Final[float]
    full_avg300: Final[float]
    full_total: Final[int]
    @property
    def source(self) -> str:
        """The file that tells: the cgroup's own where there is one, else the host's."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, as plain data."""

@final
class Limit:
    """A bound on the memory of this process."""

    @property
    def kind(self) -> str:
        """``"memory.max"``, ``"memory.high"``, ``"memory.limit_in_bytes"``,
        ``"hierarchical_memory_limit"``, ``"RLIMIT_AS"``, ``"RLIMIT_DATA"`` or ``"host"``.
        """

    @property
    def source(self) -> str:
        """The file that says so, or the kind again."""

    @property
    def bytes(self) -> int: ...
    def __hash__(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

def memory(full: bool = False, detail: bool = False) -> Memory:
    """What this process uses now, and may use, in a few microseconds.

    ``full=True`` reads everything at once. ``detail=True`` also has the kernel walk every mapping
    for ``pss``, ``uss`` and ``huge``: milliseconds for each resident gibibyte, in which no other
    thread can map or unmap. ``detail_seconds`` says what it took.
    """

def limits() -> list[Limit]:
    """All bounds that were found, as they are now.

    Those of the cgroup and of each cgroup around it, the process's own, and the host's memory.
    """

def drop_file_pages(path: str | PathLike[str]) -> tuple[int, int, int]:
    """Drops clean resident pages of a file's maps in this process.

    Bytes that were resident, maps that were dropped, maps left alone since they were written to.
    Nobody may map or unmap the file meanwhile. Raises ``OSError``.
    """
