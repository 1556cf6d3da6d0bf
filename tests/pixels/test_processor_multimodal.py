"""Inside whole multimodal processors: the same ids, the same tensors, the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from processor_kit import attempt, difference, encode, photo, uri
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

import memweir as mw
from memweir.pixels.recipe import recall

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

A, B = photo(), photo(160, 90, "coffee")
PNG, JPEG = encode(A), encode(B, "JPEG", quality=90)
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TEMPLATE = (
    "{% for m in messages %}{% for part in m.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: every byte is a token."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=list(special),
        pad_token=special[0],
        eos_token=special[0],
    )


def qwen(kind: Any = Qwen2VLImageProcessorPil, wrap: bool = False) -> Any:
    names = "endoftext im_start im_end vision_start vision_end image_pad video_pad"
    processor = Qwen2VLProcessor(
        kind(),
        tokenizer(*[f"<|{name}|>" for name in names.split()]),
        Qwen2VLVideoProcessor(),
        chat_template=TEMPLATE,
    )
    if wrap:
        cache = mw.PixelCache("64 MiB")
        processor.image_processor = mw.CachedProcessor(processor.image_processor, cache)
    return processor


@pytest.mark.parametrize("tensors", ["np", "pt"])
@pytest.mark.parametrize("kind", [Qwen2VLImageProcessor, Qwen2VLImageProcessorPil])
def test_qwen_gives_the_same_ids_and_tensors(kind: Any, tensors: str) -> None:
    plain, wrapped = qwen(kind), qwen(kind, wrap=True)
    calls: list[tuple[str, Any]] = [
        (f"Look: {IMAGE}!", A),
        (f"{IMAGE}{IMAGE} compare", [A, B]),
        (f"{IMAGE}{IMAGE} compare", [uri(PNG), uri(JPEG, "jpeg")]),
        (f"{IMAGE} and {IMAGE}", [[uri(JPEG), A]]),
        ("no image", None),
    ]
    for text, images in calls:
        expected = plain(text=text, images=images, return_tensors=tensors)
        for _ in range(2):
            got = wrapped(text=text, images=images, return_tensors=tensors)
            assert difference(expected, got) is None
    stats = wrapped.image_processor.stats()
    assert stats.through == {}
    assert stats.misses <= 4


def test_batches_keep_their_recipes_through_the_processor() -> None:
    wrapped = qwen(wrap=True)
    batch = wrapped(text=IMAGE + IMAGE, images=[uri(PNG), uri(JPEG)], return_tensors="np")
    join = recall(batch["pixel_values"])
    assert join is not None
    assert [part.origin for part in join.parts] == [uri(PNG), uri(JPEG)]


def test_a_hit_in_qwen_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped, images = qwen(wrap=True), [uri(PNG), uri(JPEG)]
    first = wrapped(text=IMAGE + IMAGE, images=images, return_tensors="np")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.Image, "open", refuse)
    assert (
        difference(first, wrapped(text=IMAGE + IMAGE, images=images, return_tensors="np")) is None
    )


def test_chat_templates_fetch_through_it() -> None:
    plain, wrapped = qwen(), qwen(wrap=True)
    content = [{"type": "image", "url": uri(PNG)}, {"type": "text", "text": "What is it?"}]
    chat = [{"role": "user", "content": content}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "np"}
    expected = plain.apply_chat_template(chat, **options)
    for _ in range(2):
        assert difference(expected, wrapped.apply_chat_template(chat, **options)) is None
    assert wrapped.image_processor.stats().hits == 1


def test_bytes_and_paths_are_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "b.jpeg"
    path.write_bytes(JPEG)
    plain, wrapped = qwen(), qwen(wrap=True)
    expected = plain(text=IMAGE * 3, images=[uri(PNG), str(path), A], return_tensors="np")
    got = wrapped(text=IMAGE * 3, images=[PNG, path, A], return_tensors="np")
    assert difference(expected, got) is None


def test_errors_are_the_processors_own() -> None:
    def outcome(processor: Any, text: str, images: Any) -> str | None:
        return attempt(lambda given: processor(text=text, images=given), images)[1]

    for text, images in ((IMAGE, [A, B]), (IMAGE, uri(PNG[:200])), (IMAGE, photo(600, 2))):
        expected = outcome(qwen(), text, images)
        assert expected is not None
        assert outcome(qwen(wrap=True), text, images) == expected


def test_repr_and_files_are_those_of_the_wrapped_processor(tmp_path: Path) -> None:
    plain, wrapped = qwen(), qwen(wrap=True)
    assert plain.to_dict() == wrapped.to_dict()
    assert repr(plain.image_processor) in repr(wrapped)
    for name, processor in (("plain", plain), ("wrapped", wrapped)):
        processor.save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "wrapped").iterdir())
    for name in files:
        assert (tmp_path / "plain" / name).read_bytes() == (
            tmp_path / "wrapped" / name
        ).read_bytes()
    sizes = [(90, 160), (300, 200)]
    expected = plain._get_num_multimodal_tokens(image_sizes=sizes)
    assert wrapped._get_num_multimodal_tokens(image_sizes=sizes) == expected


def test_it_can_be_given_to_the_constructor() -> None:
    proc = mw.CachedProcessor(Qwen2VLImageProcessorPil(), mw.PixelCache("64 MiB"))
    names = "endoftext vision_start vision_end image_pad video_pad"
    tokens = tokenizer(*[f"<|{name}|>" for name in names.split()])
    processor = Qwen2VLProcessor(proc, tokens, Qwen2VLVideoProcessor())
    processor(text=IMAGE, images=A)
    assert proc.stats().misses == 1


def test_nested_samples_of_idefics3() -> None:
    special = ("<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>")
    plain, wrapped = (Idefics3Processor(k, tokenizer(*special)) for k in _idefics3())
    texts = ["<image> one", "<image> and <image> two"]
    options = {"return_tensors": "np", "padding": True}
    expected = plain(text=texts, images=[[A], [B, A]], **options)
    for _ in range(2):
        assert difference(expected, wrapped(text=texts, images=[[A], [B, A]], **options)) is None
    stats = wrapped.image_processor.stats()
    assert (stats.through, stats.misses, stats.hits) == ({}, 2, 4)


def _idefics3() -> tuple[Any, Any]:
    cache = mw.PixelCache("256 MiB")
    return Idefics3ImageProcessorPil(), mw.CachedProcessor(Idefics3ImageProcessorPil(), cache)
