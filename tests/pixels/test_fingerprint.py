"""What a processor is called, in processes that have torch and in those that do not."""

from __future__ import annotations

import json
import subprocess
import sys

ASK = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["torch"] = sys.modules["torchvision"] = None
else:
    import torch
    if sys.argv[1] == "another":
        torch.__version__ = "1.0"
        torch.set_default_dtype(torch.float64)
from importlib import import_module
from memweir.pixels.fingerprint import processor_card
found = {}
for family, name in (("qwen2_vl", "Qwen2VL"), ("siglip", "Siglip"), ("eomt", "Eomt")):
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    kind = getattr(module, f"{name}ImageProcessorPil")
    found[name] = processor_card(kind(), return_tensors="np").fingerprint.hex()
kind = import_module("transformers.models.siglip.image_processing_pil_siglip")
siglip = kind.SiglipImageProcessorPil()
found["pt"] = processor_card(siglip, return_tensors="pt").fingerprint.hex()
print(json.dumps(found))
"""


def ask(how: str) -> dict[str, str]:
    command = [sys.executable, "-W", "ignore", "-c", ASK, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_a_processor_of_pillow_is_one_with_torch_and_without() -> None:
    without, here, another = map(ask, ("without", "with", "another"))
    for name in ("Qwen2VL", "Siglip"):
        assert without[name] == here[name] == another[name]
    # Where torch has a part in the answer its version counts: eomt calls it, pt makes tensors.
    for name in ("Eomt", "pt"):
        assert len({without[name], here[name], another[name]}) == 3
