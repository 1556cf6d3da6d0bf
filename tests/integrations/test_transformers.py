"""What models take, told from real configuration files of the real classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import memweir as mw
from memweir.probes import ProbeFailed

pytest.importorskip("transformers")

from memweir.integrations import transformers as hf
from memweir.integrations.transformers import (
    audio_support,
    embedding_model,
    hub_name,
    probe_cache,
    vision_support,
)

# Model types, and whether they take images and sound.
TAKES = {
    "bert": (False, False),
    "llama": (False, False),
    "qwen2": (False, False),
    "t5": (False, False),
    "gemma3_text": (False, False),
    "gpt2": (False, False),
    "qwen2_vl": (True, False),
    "llava": (True, False),
    "gemma3": (True, False),
    "idefics3": (True, False),
    "clip": (True, False),
    "clip_vision_model": (True, False),
    "siglip_vision_model": (True, False),
    "vit": (True, False),
    "convnext": (True, False),
    "detr": (True, False),
    "chameleon": (True, False),
    "layoutlmv3": (True, False),
    "paligemma": (True, False),
    "mllama": (True, False),
    "qwen2_audio": (False, True),
    "whisper": (False, True),
    "wav2vec2": (False, True),
    "audio-spectrogram-transformer": (False, True),
    "clap": (False, True),
    "encodec": (False, True),
    "vits": (False, False),  # it speaks
    "gemma3n": (True, True),
    "qwen2_5_omni": (True, True),
    "phi4_multimodal": (True, True),
}


def saved(folder, model_type, **more):
    from transformers import AutoConfig

    AutoConfig.for_model(model_type, **more).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", TAKES)
def test_a_saved_configuration_tells_what_its_model_takes(tmp_path, model_type):
    saved(tmp_path, model_type)
    for probe, takes in zip((vision_support, audio_support), TAKES[model_type], strict=True):
        verdict = probe_cache(probe).get(tmp_path, token=mw.ANONYMOUS)
        assert verdict.value is takes, probe.__name__


def test_the_tables_are_those_of_transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    assert hf._tables().known == set(CONFIG_MAPPING_NAMES)
    assert hf._tables().images == set(IMAGE_PROCESSOR_MAPPING_NAMES)
    assert hf._tables().sounds == set(FEATURE_EXTRACTOR_MAPPING_NAMES)


def test_every_model_type_that_has_a_processor_is_told_from_its_own_configuration(tmp_path):
    def told(probe, kind):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        return probe(str(tmp_path), token=False)

    for kind in hf._tables().known:
        assert told(vision_support, kind) is (kind in hf._tables().images)
        assert told(audio_support, kind) is (kind in hf._tables().sounds)


def test_the_question_starts_no_process_and_imports_no_torch(tmp_path):
    saved(tmp_path, "qwen2_vl")
    code = (
        "import sys, subprocess, os\n"
        "def no(*a, **k): raise SystemExit('a process was started')\n"
        "import memweir as mw\n"
        "from memweir.integrations.transformers import *\n"
        "hub_environment()\n"
        "subprocess.Popen.__init__ = os.fork = os.posix_spawn = no\n"
        f"for probe in (vision_support, audio_support):\n"
        f"    print(probe_cache(probe, deadline=120).get({str(tmp_path)!r}, token='').value)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ('{"model_type": "newer_than_this"}', "unsupported"),
        ('{"architectures": ["Custom"]}', "unsupported"),
        ('{"model_type": ["bert"]}', "unsupported"),
        ('{"model_type": "be', "transient"),
        ("", "transient"),
        ("[1, 2]", "invalid"),
        (None, "absent"),
    ],
)
@pytest.mark.parametrize("probe", [vision_support, audio_support])
def test_what_cannot_be_told_is_not_no(tmp_path, probe, config, kind):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    verdict = probe_cache(probe).get(tmp_path, token=mw.ANONYMOUS)
    assert (verdict.known, verdict.reason.kind) == (False, kind)


@pytest.mark.parametrize(
    ("config", "sees", "hears"),
    [
        ({"model_type": "new_vl", "vision_config": {"depth": 2}}, True, None),
        ({"model_type": "new_audio", "audio_config": {"d": 2}}, None, True),
        ({"thinker_config": {"vision_config": {"d": 1}, "audio_config": {"d": 1}}}, True, True),
        ({"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}, True, None),
        ({"model_type": "new", "vision_config": None, "audio_config": {}}, None, None),
        ({"model_type": "qwen2_audio", "audio_config": {"num_channels": 1}}, False, True),
    ],
)
def test_a_tower_speaks_for_a_model_that_is_newer_than_its_libraries(tmp_path, config, sees, hears):
    (tmp_path / "config.json").write_text(json.dumps(config))
    for probe, takes in ((vision_support, sees), (audio_support, hears)):
        assert probe_cache(probe).get(tmp_path, token=mw.ANONYMOUS).or_(None) is takes


def test_a_file_that_appears_or_is_finished_later_is_noticed(tmp_path):
    ask = probe_cache(vision_support, backoff=mw.Backoff(0.0))
    assert ask.get(tmp_path, token="").reason.kind == "absent"
    assert ask.get(tmp_path, token="").source == "cache"
    (tmp_path / "config.json").write_text('{"model_type": "qwe')
    assert ask.get(tmp_path, token="").reason.kind == "transient"
    saved(tmp_path, "qwen2_vl")
    assert ask.get(tmp_path, token="").value is True
    assert ask.get(tmp_path, token="").source == "cache"


SENTENCE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def test_an_embedding_model_says_so_itself(tmp_path):
    ask = probe_cache(embedding_model)
    saved(tmp_path, "bert")
    assert ask.get(tmp_path, token="").value is False
    (tmp_path / "modules.json").write_text(json.dumps(SENTENCE))
    assert ask.get(tmp_path, token="").value is True
    (tmp_path / "modules.json").write_text("[]")
    assert ask.get(tmp_path, token="").value is False
    (tmp_path / "modules.json").write_text("{}")
    assert ask.get(tmp_path, token="").reason.kind == "invalid"
    assert ask.get(tmp_path / "none", token="").known is False


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


def test_a_repository_has_one_spelling(hub_cache):
    assert {hub_name(n) for n in ("Org/Model", "org/model", "ORG/MODEL/")} == {"org/model"}
    (hub_cache / "models--Org--My-Model").mkdir()
    for name in ("Org/My-Model", "org/my-model", "ORG/MY-MODEL"):
        assert hub_name(name) == "Org/My-Model"
    (hub_cache / "models--gpt2").mkdir()
    assert hub_name("GPT2") == "gpt2"


def test_of_two_cached_spellings_the_same_case_wins_then_the_first(hub_cache):
    for name in ("models--org--Model", "models--Org--model"):
        (hub_cache / name).mkdir()
    assert hub_name("org/Model") == "org/Model"
    assert hub_name("Org/model") == "Org/model"
    assert hub_name("ORG/MODEL") == "Org/model"


def test_casings_share_an_entry_and_a_probe(hub_cache):
    asked = []

    def probe(subject, *, token):
        asked.append(subject)
        return True

    ask = probe_cache(probe)
    for name in ("Org/Model", "org/model", "oRG/mODEL"):
        assert ask.get(name, token="").known
    assert asked == ["org/model"]
    (hub_cache / "models--Org--Model").mkdir()  # it is downloaded now, as it is spelt
    assert ask.get("org/model", token="").known
    assert asked == ["org/model", "Org/Model"]


def test_a_folder_is_its_real_path(tmp_path, monkeypatch, hub_cache):
    (tmp_path / "real" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    real = str((tmp_path / "real" / "model").resolve())
    for name in ("real/model", "link/model", real, "./link/../real/model"):
        assert hub_name(name) == real
    assert hub_name("not a name\n") == "not a name\n"


@pytest.mark.parametrize(
    "name", ["a b", "a/b/c", "../x", "a\nb", "x" * 300, "-a", "/x\0y", "/\ud800", "\0"]
)
def test_what_is_no_name_is_never_asked_for(hub_cache, name):
    verdict = probe_cache(vision_support).get(name, token="")
    assert verdict.reason.kind == "invalid"


def test_a_forked_child_goes_on_with_the_same_environment():
    from test_flight_fork import end_child, fork, passed

    before = hf.hub_environment()
    pid = fork()
    if pid == 0:
        end_child(lambda: hf.hub_environment() == before or pytest.fail("it changed"))
    assert passed(pid)


def test_the_environment_names_what_answers_depend_on(monkeypatch):
    from huggingface_hub import constants

    before = hf.hub_environment()
    assert hf.hub_environment() == before
    monkeypatch.setattr(constants, "ENDPOINT", "https://user:pass@mirror")
    assert hf.hub_environment() != before
    assert "pass" not in repr(hf.hub_environment())
    monkeypatch.undo()
    for name, value in (("HF_HUB_OFFLINE", not constants.HF_HUB_OFFLINE), ("HF_HUB_CACHE", "/x")):
        monkeypatch.setattr(constants, name, value)
        assert hf.hub_environment() != before
        monkeypatch.undo()
    monkeypatch.setattr("transformers.__version__", "99")
    assert hf.hub_environment() != before


ANSWERS = [
    ("vision_support", "ok/Model", False),
    ("audio_support", "ok/model", False),
    ("vision_support", "gated/model", "denied"),
    ("vision_support", "401-repo/model", "denied"),
    ("vision_support", "404-entry/model", "absent"),
    ("embedding_model", "404-entry/model", False),
    ("embedding_model", "404-none/model", "absent"),  # nothing says that the repository is there
    ("embedding_model", "404-repo/model", "absent"),
    ("embedding_model", "gated/model", "denied"),
]


def test_probes_of_a_hub_that_answers(tmp_path):
    """In a process of its own, since the address of the hub is read when it is imported."""
    here = Path(__file__).parents[1]
    code = (
        "import json, memweir as mw\n"
        "from memweir.integrations import transformers as hf\n"
        "for probe, name in json.loads(input()):\n"
        "    verdict = hf.probe_cache(getattr(hf, probe), deadline=100).get(name, token='')\n"
        "    print(json.dumps(verdict.value if verdict.known else verdict.reason.kind))\n"
    )
    sys.path.insert(0, str(here / "probes"))
    try:
        from hub_server import serving
    finally:
        sys.path.remove(str(here / "probes"))
    with serving() as (address, asked):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path),
               "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([question[:2] for question in ANSWERS]),
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told == [answer for _, _, answer in ANSWERS]
    assert {"model", "Model"} & {part for path in asked for part in path.split("/")} == {"model"}


def test_a_probe_that_has_no_answer_says_why(tmp_path):
    with pytest.raises(ProbeFailed) as caught:
        vision_support(str(tmp_path), token=False)
    assert caught.value.kind == "absent"
