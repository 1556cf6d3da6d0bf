"""Slow questions asked once, whose answer may be that nobody knows."""

from __future__ import annotations

from memweir.errors import ProbeFailed, UnknownVerdict
from memweir.probes.auth import AMBIENT, ANONYMOUS, ANY, HubAmbient
from memweir.probes.cache import ProbeCache, ProbeStats
from memweir.probes.classify import Failure, classify_hub
from memweir.probes.policy import TTL, Backoff
from memweir.probes.process import ProcessOutcome, process_probe, run_probe_process
from memweir.probes.verdict import UNKNOWN, Reason, Verdict

__all__ = [
    "AMBIENT",
    "ANONYMOUS",
    "ANY",
    "TTL",
    "UNKNOWN",
    "Backoff",
    "Failure",
    "HubAmbient",
    "ProbeCache",
    "ProbeFailed",
    "ProbeStats",
    "ProcessOutcome",
    "Reason",
    "UnknownVerdict",
    "Verdict",
    "classify_hub",
    "process_probe",
    "run_probe_process",
]
