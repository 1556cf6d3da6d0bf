"""Our renderers render what upstream's do, and keep references where upstream keeps pixels."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import renderers.qwen3_vl
import torch
from benches.qwen3_vl import make_renderer
from renderers.base import create_renderer, is_multimodal
from renderers.configs import CustomRendererConfig
from renderers_kit import (
    QWEN,
    TOKENIZER,
    count_calls,
    encoded,
    parts,
    picture,
    pixels_of,
    qwen,
    qwen_processor,
    same,
    upstream_of,
    uri,
)

import memweir as mw
from memweir.integrations.renderers import ImageItem, ImageRef, Qwen3VLRendererConfig

TOOLS = [{"type": "function", "function": {"name": "click", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("name", QWEN)
class TestQwen:
    def make(self, name: str, backend: str, **config: Any) -> tuple[Any, Any]:
        mine = qwen(name, qwen_processor(backend), mm_hash="upstream", **config)
        return mine, upstream_of(mine, **config)

    def test_renders_what_upstream_renders(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend)
        messages = [
            {"role": "system", "content": "You see."},
            *parts(uri(1), picture(2, (96, 64)), uri(1)),
            {"role": "assistant", "content": "A cat."},
            *parts(uri(3), text="and now?"),
        ]
        for _ in range(2):  # made, then known
            for options in ({}, {"add_generation_prompt": True}, {"tools": TOOLS}):
                same(mine.render(messages, **options), theirs.render(messages, **options))
        assert mine.render_ids(messages) == theirs.render_ids(messages)

    def test_bridges_what_upstream_bridges(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend, thinking_retention="all")
        thought = [] if name == "Qwen3VLRenderer" else [mine._think_end]
        said = [*TOKENIZER.encode("so"), *thought, *TOKENIZER.encode("ok"), mine._im_end]
        turns: list[list[Any]] = [[], []]
        for renderer, outs in zip((mine, theirs), turns, strict=True):
            outs.append(renderer.render(parts(uri(1), uri(2)), add_generation_prompt=True))
            for seed in (3, 1):
                tool = {"role": "tool", "content": parts(uri(seed))[0]["content"]}
                new = [tool, *parts(uri(seed + 10), uri(seed + 20))]
                before = outs[-1].multi_modal_data
                outs.append(
                    renderer.bridge_to_next_turn(
                        outs[-1].token_ids, said, new, previous_multi_modal_data=before
                    )
                )
        for ours, other in zip(*turns, strict=True):
            same(ours, other)
        kept = turns[0][-1].multi_modal_data.mm_items["image"]
        assert all(type(item) is ImageItem for item in kept)

    def test_numbers_images_as_upstream_does(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend, add_vision_id=True)
        messages = parts(uri(1), uri(2), uri(3))
        same(mine.render(messages), theirs.render(messages))

    def test_text_needs_no_processor(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend)
        mine._processor = None
        messages = [{"role": "user", "content": "hello"}]
        same(mine.render(messages), theirs.render(messages))

    def test_raw_parts_are_left_to_the_engine(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend)
        messages = parts(uri(1))
        out = mine.render(messages, process_multimodal=False)
        same(out, theirs.render(messages, process_multimodal=False))

    def test_is_upstreams(self, name: str, backend: str) -> None:
        mine, theirs = self.make(name, backend)
        assert isinstance(mine, type(theirs))
        assert is_multimodal(mine)
        assert mine.mm_token_type_id_map == theirs.mm_token_type_id_map
        assert mine.supports_process_multimodal


class TestItems:
    def test_are_references_of_less_than_a_kibibyte(self) -> None:
        mine = qwen()
        [item] = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"]
        ref, grid = item["pixel_values"], item["image_grid_thw"]
        assert isinstance(ref, mw.PixelRef)
        assert ref.recipe is not None
        assert ref.pinned is None
        assert grid.flags.owndata
        size = sum(map(sys.getsizeof, (item, ref, ref.descriptor, grid)))
        assert size + len(ref.descriptor.encode()) < 1024
        assert item.refs == {"pixel_values": ref}

    def test_a_source_is_the_messages_own_object(self) -> None:
        text, image = uri(1), picture(2)
        [a, b] = qwen().render(parts(text, image)).multi_modal_data.mm_items["image"]
        assert a["pixel_values"].source is text
        assert b["pixel_values"].source is image

    def test_come_back_after_eviction(self, tmp_path: Any) -> None:
        path = tmp_path / "a.png"
        picture(4).save(path)
        sources = [uri(1), picture(2), str(path), path.as_uri(), picture(3, mode="RGBA")]
        messages = parts(*sources)
        messages[0]["content"].append({"type": "image", "image": bytearray(path.read_bytes())})
        mine = qwen()
        calls = count_calls(mine._processor.image_processor)
        want = pixels_of(upstream_of(mine).render(messages))
        out = mine.render(messages)
        calls.clear()
        for _ in range(2):
            mine.pixel_cache.clear()
            for got, wanted in zip(pixels_of(out), want, strict=True):
                assert got["pixel_values"].tobytes() == wanted["pixel_values"].tobytes()
        assert calls == [1] * 2 * 4, "the file, its URI and its bytes are one image"

    def test_rendering_again_processes_nothing_even_after_eviction(self) -> None:
        mine = qwen(byte_budget=0)
        calls = count_calls(mine._processor.image_processor)
        first = mine.render(parts(uri(1), uri(2)))
        again = mine.render(parts(uri(1), uri(2)))
        assert first.token_ids == again.token_ids
        assert len(calls) == 2

    def test_torch_takes_references(self) -> None:
        mine = qwen()
        messages = parts(uri(1), uri(2))
        items = mine.render(messages).multi_modal_data.mm_items["image"]
        theirs = upstream_of(mine).render(messages).multi_modal_data.mm_items["image"]
        mine.pixel_cache.clear()
        for key in ("pixel_values", "image_grid_thw"):
            ours = torch.cat([torch.as_tensor(item[key]) for item in items])
            assert torch.equal(ours, torch.cat([torch.as_tensor(item[key]) for item in theirs]))
        tensor = torch.as_tensor(items[0]["pixel_values"])
        tensor.zero_()
        assert np.asarray(items[0]["pixel_values"]).any(), "the tensor was the caller's own"

    def test_who_walks_an_item_gets_arrays(self) -> None:
        [item] = qwen().render(parts(uri(1))).multi_modal_data.mm_items["image"]
        ref = item["pixel_values"]
        for values in (dict(item.items()), dict(zip(item, item.values(), strict=True))):
            assert type(values["pixel_values"]) is np.ndarray
            assert values["pixel_values"].tobytes() == np.asarray(ref).tobytes()
            assert list(values) == ["pixel_values", "image_grid_thw"]

    def test_copies_stay_items(self) -> None:
        [item] = qwen().render(parts(uri(1))).multi_modal_data.mm_items["image"]
        copies = [item.copy(), copy.copy(item), copy.deepcopy(item), item | {"more": 1}]
        copies.append(pickle.loads(pickle.dumps(item)))
        for each in copies:
            assert type(each) is ImageItem
            assert isinstance(each["pixel_values"], mw.PixelRef)
            assert each["pixel_values"] == item["pixel_values"]
        assert copies[2]["image_grid_thw"] is not item["image_grid_thw"]
        assert len(pickle.dumps(item)) < 1024

    def test_strip_leaves_references_and_materialize_restores_them(self) -> None:
        mine = qwen()
        data = mine.render(parts(uri(1), uri(2))).multi_modal_data
        stripped = mw.strip(data, mine.pixel_cache)
        assert stripped.bytes_removed == 0
        refs = [item["pixel_values"] for item in data.mm_items["image"]]
        assert all(a is b for a, b in zip(stripped.refs, refs, strict=True))
        assert all(type(item) is ImageItem for item in stripped.data.mm_items["image"])
        whole = mw.materialize(data)
        arrays = [item["pixel_values"] for item in whole.mm_items["image"]]
        assert [type(array) for array in arrays] == [np.ndarray] * 2
        assert all(isinstance(item["pixel_values"], ImageRef) for item in data.mm_items["image"])

    def test_grids_are_each_items_own(self) -> None:
        mine = qwen()
        [a] = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"]
        a["image_grid_thw"][:] = 0
        [b] = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"]
        assert b["image_grid_thw"].all()

    def test_hits_decode_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mine = qwen()
        messages = parts(uri(1), uri(2))
        want = mine.render(messages)
        monkeypatch.setattr("PIL.Image.open", None)
        same(mine.render(messages), want)

    def test_a_source_that_is_still_referred_to_is_not_even_hashed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = qwen()
        messages = parts(uri(1), encoded(picture(2)))
        kept = mine.render(messages)
        home = kept.multi_modal_data.mm_items["image"][0]["pixel_values"].home
        monkeypatch.setattr(home.engine, "sources", None)
        same(mine.render(messages), kept)
        spelled = copy.deepcopy(messages)
        spelled[0]["content"][0]["image_url"]["url"] = "".join([*uri(1)])
        with pytest.raises(AttributeError):
            mine.render(spelled)

    def test_images_rendered_again_are_not_the_next_to_go(self) -> None:
        mine = qwen(byte_budget="4 MiB")
        size = mine.render(parts(uri(1))), mine.pixel_cache.stats().bytes
        first = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"][0]["pixel_values"]
        mine.render(parts(uri(2)))
        mine.render(parts(uri(1)))
        mine.pixel_cache.evict(to=size[1])
        assert first.recipe.key in mine.pixel_cache


class TestGone:
    """References whose source nobody has any more."""

    def test_a_copy_finds_its_source_in_a_store(self) -> None:
        mine = qwen()
        store = mw.PixelCache("1 MiB", name="sources")
        out = mine.render(parts(uri(1)))
        copied = pickle.loads(pickle.dumps(out.multi_modal_data.mm_items["image"][0]))
        want = np.array(out.multi_modal_data.mm_items["image"][0]["pixel_values"])
        mine.pixel_cache.clear()
        with pytest.raises(mw.MissingPixels, match="Recompute"):
            np.asarray(copied["pixel_values"])
        kept = mw.intern_sources(parts(uri(1)), store=store, threshold=64)
        assert np.asarray(copied["pixel_values"]).tobytes() == want.tobytes()
        del kept

    def test_outlives_its_renderer(self) -> None:
        mine = qwen()
        out = mine.render(parts(uri(1)))
        want = pixels_of(out)
        mine.pixel_cache.clear()
        del mine
        assert pixels_of(out)[0]["pixel_values"].tobytes() == want[0]["pixel_values"].tobytes()

    def test_a_forged_reference_is_an_error(self) -> None:
        mine = qwen()
        [item] = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"]
        ref = item["pixel_values"]
        forged = ImageRef(ref.descriptor, uri(2), ref.home)
        mine.pixel_cache.clear()
        with pytest.raises(mw.PixelMismatch, match="another source"):
            np.asarray(forged)
        with pytest.raises(ValueError, match="malformed"):
            mw.PixelRef.from_json({"memweir": ref.to_json()["memweir"][:-5]})

    def test_another_configuration_is_an_error(self) -> None:
        mine = qwen()
        [item] = mine.render(parts(uri(1))).multi_modal_data.mm_items["image"]
        mine._processor.image_processor.image_mean = [0.4] * 3
        mine.pixel_cache.clear()
        item["pixel_values"].home.cache.clear()
        with pytest.raises(mw.PixelMismatch, match="settings"):
            np.asarray(item["pixel_values"])


class TestHashes:
    def test_depend_on_the_processors_configuration(self) -> None:
        processors = [qwen_processor(), qwen_processor(image_mean=[0.4] * 3)]
        hashes = []
        for mode in ("processor", "upstream"):
            for processor in processors:
                data = qwen(processor=processor, mm_hash=mode).render(parts(uri(1)))
                hashes += data.multi_modal_data.mm_hashes["image"]
        assert len(set(hashes)) == 3
        want = renderers.qwen3_vl._image_hash(renderers.qwen3_vl._load_pil_image({"image": uri(1)}))
        assert hashes[2] == hashes[3] == want

    def test_are_the_same_in_every_process(self) -> None:
        program = (
            "from renderers_kit import *\n"
            "a = qwen(processor=make_renderer()._processor).render(parts(uri(1)))\n"
            "print(*a.multi_modal_data.mm_hashes['image'])"
        )
        here = qwen(processor=make_renderer()._processor).render(parts(uri(1)))
        path = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == here.multi_modal_data.mm_hashes["image"]

    def test_follow_a_processor_that_is_changed(self) -> None:
        mine = qwen()
        before = mine.render(parts(uri(1)))
        mine._processor.image_processor.image_mean = [0.4] * 3
        after = mine.render(parts(uri(1)))
        assert before.multi_modal_data.mm_hashes != after.multi_modal_data.mm_hashes
        theirs = upstream_of(mine).render(parts(uri(1)))
        same(after, theirs, hashes=False)

    def test_are_of_the_image_and_not_of_its_spelling(self) -> None:
        spelled = uri(1).replace("data:image/png", "data:image/PNG")
        [a, b] = qwen().render(parts(uri(1), spelled)).multi_modal_data.mm_hashes["image"]
        assert a == b


class TestCache:
    def test_is_one_for_a_processor(self) -> None:
        processor = qwen_processor()
        twin = type(processor)(image_processor=copy.deepcopy(processor.image_processor))
        a, b = qwen(processor=processor), qwen("Qwen36Renderer", twin)
        assert a.pixel_cache is b.pixel_cache
        assert a.pixel_cache is not qwen().pixel_cache
        calls = count_calls(processor.image_processor)
        a.render(parts(uri(1)))
        b.render(parts(uri(1)))
        assert len(calls) <= 1

    def test_is_shared_with_copies_of_a_renderer(self) -> None:
        mine = qwen()
        want = mine.render(parts(uri(1)))
        for twin in (copy.copy(mine), copy.deepcopy(mine)):
            assert twin.pixel_cache is mine.pixel_cache
            same(twin.render(parts(uri(1))), want)

    def test_has_the_largest_budget_that_is_asked_for(self) -> None:
        for budgets in (["64 MiB", None, "2 MiB"], ["2 MiB", "64 MiB"], [None, "64 MiB"]):
            processor = qwen_processor()
            made = [qwen(processor=processor, byte_budget=budget) for budget in budgets]
            caches = {id(one.pixel_cache) for one in made}
            assert len(caches) == 1
            assert made[0].pixel_cache.stats().budget == 64 << 20

    def test_has_the_settings_budget_when_none_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MEMWEIR_CACHE_BUDGET", "3 MiB")
        assert qwen().pixel_cache.stats().budget == 3 << 20

    def test_is_compact_or_not(self) -> None:
        processor = qwen_processor()
        first = qwen(processor=processor, compact="off")
        assert first.pixel_cache.compact == "off"
        assert qwen(processor=processor).pixel_cache is first.pixel_cache
        with pytest.raises(ValueError, match="compact='auto'"):
            qwen(processor=processor, compact="auto").render(parts(uri(1)))

    def test_dies_with_the_last_of_its_users(self) -> None:
        import gc
        import weakref

        mine = qwen()
        out = mine.render(parts(uri(1)))
        cache = weakref.ref(mine.pixel_cache)
        del mine
        gc.collect()
        assert cache() is not None
        del out
        gc.collect()
        assert cache() is None


class TestConfig:
    def custom(self, **more: Any) -> CustomRendererConfig:
        path = "memweir.integrations.renderers:Qwen3VLRenderer"
        return CustomRendererConfig(name="custom", import_path=path, **more)

    def test_comes_through_upstreams_custom_renderer(self) -> None:
        config = self.custom(byte_budget="8 MiB", add_vision_id=True, thinking_retention="all")
        for each in (config, CustomRendererConfig.model_validate_json(config.model_dump_json())):
            mine = create_renderer(TOKENIZER, each)
            assert type(mine).__module__ == "memweir.integrations.renderers"
            assert (mine.config.byte_budget, mine.config.add_vision_id) == ("8 MiB", True)
            mine._processor = qwen_processor()
            assert mine.pixel_cache.stats().budget == 8 << 20
        assert "8 MiB" in config.model_dump_json()

    @pytest.mark.parametrize(
        ("field", "value", "what"),
        [
            ("byte_budget", "8 MBit", "unknown unit"),
            ("byte_budget", -1, "negative|at least|-1"),
            ("compact", "some", "auto"),
            ("mm_hash", "sha1", "processor"),
            ("image_budget", 1, "image_budget"),
        ],
    )
    def test_says_what_is_wrong(self, field: str, value: Any, what: str) -> None:
        with pytest.raises(ValueError, match=what):
            self.custom(**{field: value})

    def test_upstreams_config_is_taken_over(self) -> None:
        configs = pytest.importorskip("renderers.configs")
        mine = qwen()
        kind = type(mine)
        given = configs.Qwen3VLRendererConfig(add_vision_id=True)
        other = kind(TOKENIZER, given, processor=mine._processor)
        assert isinstance(other.config, Qwen3VLRendererConfig)
        assert other.config.add_vision_id

    def test_a_count_of_images_is_said_to_have_no_effect(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.custom(image_cache_max=32)
        assert "byte_budget" in caplog.text


class TestSwitch:
    @pytest.mark.parametrize("name", ["MEMWEIR_MM_EPHEMERAL", "RENDERERS_MM_EPHEMERAL"])
    def test_off_keeps_arrays_and_shares_them(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "0")
        mine = qwen()
        messages = parts(uri(1), uri(1))
        out = mine.render(messages)
        same(out, upstream_of(mine).render(messages), hashes=False)
        [a, b] = out.multi_modal_data.mm_items["image"]
        assert type(a["pixel_values"]) is np.ndarray
        assert a["pixel_values"] is b["pixel_values"]
        monkeypatch.setenv(name, "1")
        [a, _] = qwen().render(messages).multi_modal_data.mm_items["image"]
        assert isinstance(a["pixel_values"], mw.PixelRef)

    def test_ours_comes_before_the_alias_and_a_field_before_both(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MEMWEIR_MM_EPHEMERAL", "1")
        monkeypatch.setenv("RENDERERS_MM_EPHEMERAL", "0")
        for config, kind in (({}, mw.PixelRef), ({"ephemeral": False}, np.ndarray)):
            [item] = qwen(**config).render(parts(uri(1))).multi_modal_data.mm_items["image"]
            assert isinstance(item["pixel_values"], kind)

    def test_anything_else_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RENDERERS_MM_EPHEMERAL", "maybe")
        with pytest.raises(ValueError, match="RENDERERS_MM_EPHEMERAL"):
            qwen()


class TestUpstream:
    def test_a_missing_method_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import memweir.integrations._renderers_upstream as upstream

        upstream.check.cache_clear()
        monkeypatch.delattr(renderers.qwen3_vl.Qwen3VLRenderer, "_process_image")
        with pytest.raises(ImportError, match=r"renderers \S+ has no .*_process_image.* 0\.1\.12"):
            qwen()

    def test_a_missing_function_is_named(self) -> None:
        from memweir.integrations._renderers_upstream import private

        with pytest.raises(ImportError, match=r"renderers\.qwen3_vl\._image_sum"):
            private(renderers.qwen3_vl, "_image_sum")
