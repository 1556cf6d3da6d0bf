"""What a thing is called: 32 bytes over a framed, versioned, typed preimage.

Images, arrays, bytes, files and nested plain data each have a kind of their own, and kinds never
collide. What has no canonical bytes is refused with ``UnsupportedType``, never pickled. All of it
runs off the GIL as soon as there is much to hash. ``docs/identity.md`` writes the preimage down.
"""

from __future__ import annotations

from ._core import (
    Digest,
    hash_array,
    hash_bytes,
    hash_file,
    hash_image,
    hash_many,
    hash_value,
)

__all__ = [
    "Digest",
    "hash_array",
    "hash_bytes",
    "hash_file",
    "hash_image",
    "hash_many",
    "hash_value",
]
