"""Libraries that matter here, and pairs of them that break each other."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from .finding import Facts, Finding
from .host import Host

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

__all__ = ["facts", "findings"]

PACKAGES = (
    *("memweir", "numpy", "pillow", "torch", "torchvision", "onnxruntime", "pyarrow"),
    *("transformers", "huggingface-hub", "renderers", "verifiers", "vllm", "psutil"),
)

# Pairs that break each other when they are installed apart: the first declares which versions of
# the second it works with, and an installer that is told not to look does not look.
PAIRS = (
    ("transformers", "huggingface-hub"),
    ("transformers", "tokenizers"),
    ("transformers", "safetensors"),
    ("tokenizers", "huggingface-hub"),
    ("datasets", "huggingface-hub"),
    ("diffusers", "huggingface-hub"),
    ("sentence-transformers", "transformers"),
    ("sentence-transformers", "huggingface-hub"),
    ("torchvision", "torch"),
    ("torchaudio", "torch"),
)
# What is imported and not declared.
UNDECLARED = (("renderers", "httpx"),)


def facts(host: Host) -> dict[str, str | None]:
    """Versions by package, read from metadata: nothing is imported for it."""
    found: dict[str, str | None] = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
    }
    return found | {package: _version(package) for package in PACKAGES}


def findings(facts: Facts) -> Iterator[Finding]:
    """What is broken: pairs of libraries that do not fit."""
    for package, other in PAIRS:
        need = _need(package, other)
        if need is not None:
            yield Finding(
                "problem",
                "pair-broken",
                need,
                f"install {package} and {other} together, and let the installer choose",
                f"{package} and {other}",
            )
    for package, other in UNDECLARED:
        if _version(package) is not None and _version(other) is None:
            yield Finding(
                "problem",
                "undeclared-missing",
                f"{package} {_version(package)} imports {other}, does not declare it, and it is "
                "not installed",
                f"install {other}",
                f"{package} without {other}",
            )


def _need(package: str, other: str) -> str | None:
    """What `package` says about the `other` that is installed, if that does not fit."""
    has, version = _version(other), _version(package)
    if version is None:
        return None
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return None
    for line in metadata.requires(package) or ():
        try:
            requirement = Requirement(line)
        except ValueError:
            continue  # from before there was a grammar
        if requirement.name.lower().replace("_", "-") != other:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if has is None:
            return f"{package} {version} needs {other}{requirement.specifier}, not installed"
        if not _fits(requirement.specifier, has):
            return f"{package} {version} needs {other}{requirement.specifier}, and {has} is there"
    return None


def _fits(specifier: SpecifierSet, version: str) -> bool:
    from packaging.version import InvalidVersion, Version

    try:
        return specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True  # nothing that could be compared


def _version(package: str) -> str | None:
    try:
        found: str | None = metadata.version(package)
    except (metadata.PackageNotFoundError, KeyError):
        return None
    return found  # none, too, in what an interrupted uninstall leaves behind
