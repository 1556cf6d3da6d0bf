"""vLLM's own encoder, request model, caches and errors, in the places of the plain ones.

Made for the wheel of 0.33.0 with ``--no-deps`` and what its modules import; nothing of it needs
a GPU. Imported by the fixture ``vllm`` alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.entrypoints.scale_out.token_in_token_out.mm_features import mm_kwargs_from_features
from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import (
    decode_mm_kwargs_item,
    encode_mm_kwargs_item,
)
from vllm.entrypoints.scale_out.token_in_token_out.protocol import (
    GenerateRequest,
    MultiModalFeatures,
)
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.exceptions import GenerationError, RetryableRequestError
from vllm.model_executor.models.qwen2_vl import _create_qwen2vl_field_factory
from vllm.multimodal.cache.base import MultiModalCache, MultiModalCacheMissError
from vllm.multimodal.cache.factories import _get_cache_type
from vllm.multimodal.cache.lru import LruKeyReplicatedReceiverCache, LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.multimodal.processing.processor import BaseMultiModalProcessor
from wire_kit import Miss, Unknown, tokens_of

__all__ = [
    "BaseMultiModalProcessor",
    "GenerateRequest",
    "GenerationError",
    "MultiModalCache",
    "RealCaches",
    "RetryableRequestError",
    "_get_cache_type",
    "create_error_response",
    "decode_mm_kwargs_item",
    "gemma_texts",
    "qwen_texts",
]


def qwen_texts(arrays: list[Any], grids: list[Any]) -> list[str]:
    """What vLLM itself makes of the images of a Qwen-VL prompt."""
    values = torch.cat([torch.as_tensor(array) for array in arrays])
    data = {"pixel_values": values, "image_grid_thw": torch.cat(list(map(torch.as_tensor, grids)))}
    inputs = BatchFeature(data=data)
    items = MultiModalKwargsItems.from_hf_inputs(inputs, _create_qwen2vl_field_factory(2)(inputs))
    return [encode_mm_kwargs_item(item) for item in items["image"]]


def gemma_texts(arrays: list[Any], places: list[Any]) -> list[str]:
    """The same for Gemma 4."""
    values = torch.cat([torch.as_tensor(array) for array in arrays])
    inputs = BatchFeature(
        data={
            "pixel_values": values,
            "pixel_position_ids": torch.cat(list(map(torch.as_tensor, places))),
        }
    )
    fields = {key: MultiModalFieldConfig.batched("image") for key in inputs}
    items = MultiModalKwargsItems.from_hf_inputs(inputs, fields)
    return [encode_mm_kwargs_item(item) for item in items["image"]]


class RealCaches:
    """The sender cache of an API process and the receiver cache of its engine process."""

    def __init__(self, capacity: int, token_bytes: int) -> None:
        config: Any = SimpleNamespace(mm_processor_cache_gb=capacity / (1 << 30))
        model: Any = SimpleNamespace(get_multimodal_config=lambda: config)
        self.front = LruKeyReplicatedSenderCache(model)
        self.engine = LruKeyReplicatedReceiverCache(model)
        self.tokens: dict[str, int] = {}
        self.token_bytes = token_bytes

    def features(self, features: dict[str, Any]) -> None:
        request = MultiModalFeatures.model_validate(features)
        self._receive(
            request.mm_hashes["image"],
            mm_kwargs_from_features(request)["image"],
            [place.offset for place in request.mm_placeholders["image"]],
        )

    def parts(self, parts: list[dict[str, Any]]) -> list[int]:
        hashes = {"image": [part.get("uuid") or part["url"] for part in parts]}
        sources = {"image": [part if part.get("url") else None for part in parts]}
        processor: Any = SimpleNamespace(
            info=SimpleNamespace(parse_mm_data=lambda data, validate: data),
            _recompute_cached_prompt_update=lambda update, index: update,
        )
        steps = BaseMultiModalProcessor
        try:
            known, missing = steps._get_cache_missing_items(
                processor,
                self.front,
                sources,
                hashes,  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise Unknown(int(str(error).split()[6])) from error
        for name, part in zip(hashes["image"], parts, strict=True):
            if part.get("url"):
                self.tokens[name] = tokens_of(part)
        processed = [self._process(tokens_of(part)) for part in missing.get("image", [])]
        merged, _ = steps._merge_mm_kwargs(
            processor,
            self.front,
            hashes,
            known,
            {"image": processed},  # type: ignore[arg-type]
            {"image": [[] for _ in processed]},
        )
        self._receive(hashes["image"], merged["image"], list(range(len(parts))))
        return [self.tokens[name] for name in hashes["image"]]

    def evict(self, name: str) -> None:
        self.engine._cache.pop(name, None)

    def clear(self) -> None:
        self.front.clear_cache()
        self.engine.clear_cache()

    def held(self) -> dict[str, int]:
        cache = self.engine._cache
        return {name: int(cache.getsizeof(cache.cache[name])) for name in cache.order}

    def tensor(self, name: str) -> Any:
        data = self.engine._cache.cache[name]["pixel_values"].data
        bits = data.dtype is torch.bfloat16
        return (data.view(torch.uint16) if bits else data).numpy()  # type: ignore[union-attr]

    def _process(self, tokens: int) -> Any:
        field = MultiModalFieldConfig.batched("image")
        data = torch.zeros(1, tokens * self.token_bytes, dtype=torch.uint8)
        inputs = BatchFeature(data={"pixel_values": data})
        return MultiModalKwargsItems.from_hf_inputs(inputs, {"pixel_values": field})["image"][0]

    def _receive(self, hashes: list[str], items: Any, offsets: list[int]) -> None:
        specs = [
            MultiModalFeatureSpec(
                data=item,
                modality="image",
                identifier=name,
                mm_position=PlaceholderRange(offset=offset, length=1),
                mm_hash=name,
            )
            for name, item, offset in zip(hashes, items, offsets, strict=True)
        ]
        specs.sort(key=lambda spec: spec.mm_position.offset)
        try:
            self.engine.get_and_update_features(specs)
        except MultiModalCacheMissError as miss:
            for name in miss.mm_hashes:
                self.front.invalidate(name)
            raise Miss from miss
