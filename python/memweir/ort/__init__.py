"""ONNX Runtime sessions that give their memory back, and models in pre-packed form.

Importing this does not import onnxruntime; the first session does.
"""

from __future__ import annotations

from .build import prepack
from .handle import CloseReport, Session, Size
from .offload import OffloadReport
from .opening import session
from .prepacked import Cleaned, Prepacked, cache_folder, cached, clean
from .settings import SessionSettings, Setting

__all__ = [
    "Cleaned",
    "CloseReport",
    "OffloadReport",
    "Prepacked",
    "Session",
    "SessionSettings",
    "Setting",
    "Size",
    "cache_folder",
    "cached",
    "clean",
    "prepack",
    "session",
]
