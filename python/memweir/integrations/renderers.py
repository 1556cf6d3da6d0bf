"""Renderers of the ``renderers`` package that keep references to images instead of their pixels.

Each class goes by upstream's name, is a subclass of upstream's, and renders the same tokens::

    CustomRendererConfig(
        name="custom",
        import_path="memweir.integrations.renderers:Qwen3VLRenderer",
        byte_budget="2 GiB",
    )

Qwen3-VL, Qwen3.5, 3.6 and 3.8, and Gemma 4. Not here: Kimi K2.5 and Nemotron 3.5, whose image
processors are code out of model repositories, and Inkling, which decodes every image before it
can be asked for, and which upstream's client cannot send. :func:`attach` bounds the tables of
Kimi K2.5 and Inkling; Nemotron 3.5 has none.

Made for ``renderers`` 0.1.12; ``docs/rollouts.md`` says what is promised.
"""

# Upstream has no types.
# mypy: disallow-subclassing-any=False, disable-error-code="import-untyped"

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import renderers.configs as configs
import renderers.gemma4 as gemma4
import renderers.qwen3_vl as qwen3_vl
import renderers.qwen35 as qwen35
import renderers.qwen36 as qwen36
import renderers.qwen38 as qwen38
from pydantic import field_validator, model_validator

from memweir.integrations._renderers_attach import ImageTable
from memweir.integrations._renderers_images import Family, Images, Prompt, Rendered
from memweir.integrations._renderers_items import ImageItem, ImageRef
from memweir.integrations._renderers_prompts import Now, finish
from memweir.integrations._renderers_upstream import check, private
from memweir.pixels.cache import PixelCache
from memweir.sizes import parse_size

if TYPE_CHECKING:
    from memweir._core import Pixels

__all__ = [
    "Gemma4Renderer",
    "Gemma4RendererConfig",
    "ImageItem",
    "ImageRef",
    "Qwen3VLRenderer",
    "Qwen3VLRendererConfig",
    "Qwen35Renderer",
    "Qwen35RendererConfig",
    "Qwen36Renderer",
    "Qwen36RendererConfig",
    "Qwen38Renderer",
    "Qwen38RendererConfig",
    "attach",
    "send_once_client",
]

logger = logging.getLogger("memweir.renderers")

_OURS = frozenset({"byte_budget", "compact", "mm_hash", "ephemeral", "fingerprint"})
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off", ""})


class _Config(configs.BaseRendererConfig):
    """Fields that every renderer here takes beside upstream's own.

    ``byte_budget``: of the cache that all renderers with one image processor share; of several
    the largest holds, and ``None`` is ``Settings.cache_budget``. ``compact``: as for a
    ``PixelCache``. ``mm_hash``: ``"processor"`` names an image to the engine by its pixels and
    the processor's configuration, ``"upstream"`` by its pixels alone, as upstream does.
    ``ephemeral``: whether rendered images are references, or arrays as upstream's are; ``None``
    asks ``MEMWEIR_MM_EPHEMERAL``, then ``RENDERERS_MM_EPHEMERAL``, and is yes. ``fingerprint``
    names the code of an image processor that is not part of transformers.
    """

    _internal_fields = _OURS

    byte_budget: int | str | None = None
    compact: Literal["auto", "off"] | None = None
    mm_hash: Literal["processor", "upstream"] = "processor"
    ephemeral: bool | None = None
    fingerprint: str | None = None

    @field_validator("byte_budget")
    @classmethod
    def _parses(cls, budget: int | str | None) -> int | str | None:
        if budget is not None:
            parse_size(budget)
        return budget

    @model_validator(mode="after")
    def _no_count(self) -> Self:
        if "image_cache_max" in self.model_fields_set:
            logger.warning("image_cache_max has no effect here: byte_budget bounds the cache")
        return self


class Qwen3VLRendererConfig(_Config, configs.Qwen3VLRendererConfig):
    _internal_fields = _OURS | configs.Qwen3VLRendererConfig._internal_fields


class Qwen35RendererConfig(_Config, configs.Qwen35RendererConfig):
    _internal_fields = _OURS | configs.Qwen35RendererConfig._internal_fields


class Qwen36RendererConfig(_Config, configs.Qwen36RendererConfig):
    _internal_fields = _OURS | configs.Qwen36RendererConfig._internal_fields


class Qwen38RendererConfig(_Config, configs.Qwen38RendererConfig):
    _internal_fields = _OURS | configs.Qwen38RendererConfig._internal_fields


class Gemma4RendererConfig(_Config, configs.Gemma4RendererConfig):
    _internal_fields = _OURS | configs.Gemma4RendererConfig._internal_fields


class _Renderer:
    """What all renderers here have in common, in front of upstream's class."""

    config_class: ClassVar[type[_Config]]
    _memweir_family: ClassVar[Family]

    def __init__(self, tokenizer: Any, config: Any = None, *, processor: Any = None) -> None:
        check(type(self))  # type: ignore[arg-type]
        if config is None or not isinstance(config, _Config):
            given = {} if config is None else config.model_dump(exclude_unset=True)
            config = self.config_class.model_validate(given)
        super().__init__(tokenizer, config, processor=processor)  # type: ignore[call-arg]
        self._memweir_images = Images(
            self._memweir_family,
            budget=config.byte_budget,
            compact=config.compact,
            upstream_hash=config.mm_hash == "upstream",
            refs=_switch("MM_EPHEMERAL", config.ephemeral, default=True),
            fingerprint=config.fingerprint,
        )
        self._memweir_now = Now()

    @property
    def pixel_cache(self) -> PixelCache:
        """The cache that this renderer shares with all others of its image processor."""
        return self._memweir_prompt().home.cache

    def render(self, *args: Any, **kwargs: Any) -> Any:
        with self._memweir_now.prompt() as lengths:
            return finish(super().render(*args, **kwargs), lengths)  # type: ignore[misc]

    def bridge_to_next_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._memweir_now.prompt() as lengths:
            return finish(super().bridge_to_next_turn(*args, **kwargs), lengths)  # type: ignore[misc]

    def _memweir_image(self, part: Mapping[str, Any]) -> Rendered:
        """An image of the prompt that this thread is rendering, or of none."""
        prompt = self._memweir_now.images
        if prompt is None:
            prompt = self._memweir_prompt()
            if self._memweir_now.lengths is not None:
                self._memweir_now.images = prompt
        return prompt.render(part)

    def _memweir_prompt(self) -> Prompt:
        return self._memweir_images.prompt(self._get_processor().image_processor)  # type: ignore[attr-defined]


class _QwenVL(_Renderer):
    def _process_image(self, part: dict[str, Any]) -> tuple[None, dict[str, Any], int, str]:
        image = self._memweir_image(part)
        return None, image.values, self._memweir_now.length(image.tokens), image.hash


def _qwen_vl_tokens(entry: Pixels, processor: Any) -> int:
    patches = int(entry["image_grid_thw"][0].prod())
    return patches // int(processor.merge_size) ** 2


_QWEN_VL = Family(
    private(qwen3_vl, "_load_pil_image"),
    private(qwen3_vl, "_image_hash"),
    ("pixel_values", "image_grid_thw"),
    _qwen_vl_tokens,
)


class Qwen3VLRenderer(_QwenVL, qwen3_vl.Qwen3VLRenderer):
    """Upstream's renderer for Qwen3-VL; its images are references."""

    config_class = Qwen3VLRendererConfig
    _memweir_family = _QWEN_VL


class Qwen35Renderer(_QwenVL, qwen35.Qwen35Renderer):
    """Upstream's renderer for Qwen3.5; its images are references."""

    config_class = _config_cls = Qwen35RendererConfig
    _memweir_family = _QWEN_VL


class Qwen36Renderer(_QwenVL, qwen36.Qwen36Renderer):
    """Upstream's renderer for Qwen3.6; its images are references."""

    config_class = _config_cls = Qwen36RendererConfig
    _memweir_family = _QWEN_VL


class Qwen38Renderer(_QwenVL, qwen38.Qwen38Renderer):
    """Upstream's renderer for Qwen3.8; its images are references."""

    config_class = _config_cls = Qwen38RendererConfig
    _memweir_family = _QWEN_VL


def _gemma_4_tokens(entry: Pixels, processor: Any) -> int:
    return int(entry["num_soft_tokens_per_image"][0])


_GEMMA_4 = Family(
    private(gemma4, "_load_pil_image"),
    private(gemma4, "_image_hash"),
    ("pixel_values", "image_position_ids"),
    _gemma_4_tokens,
)


class Gemma4Renderer(_Renderer, gemma4.Gemma4Renderer):
    """Upstream's renderer for Gemma 4; its images are references."""

    config_class = _config_cls = Gemma4RendererConfig
    _memweir_family = _GEMMA_4

    def _process_image(self, part: dict[str, Any]) -> tuple[dict[str, Any], int, str]:
        image = self._memweir_image(part)
        return image.values, self._memweir_now.length(image.tokens), image.hash


def attach(renderer: Any, cache: PixelCache, *, fingerprint: str | None = None) -> None:
    """Keeps the processed images of an upstream ``renderer`` in ``cache`` from now on.

    Its table of so many entries is replaced; ``cache`` may serve any number of renderers. What
    the renderer returns are arrays as before, so that what is kept of its prompts is not bounded:
    the renderers of this module do that, and need no ``attach``. ``fingerprint`` names the code
    of an image processor that is not part of transformers.

    Raises ``ImportError`` for a renderer without such a table.
    """
    if isinstance(renderer, _Renderer):
        raise TypeError(f"{type(renderer).__name__} of memweir has a cache: give it byte_budget=")
    if not isinstance(cache, PixelCache):
        raise TypeError(f"cache is a PixelCache, not {type(cache).__name__}")
    private(renderer, "_image_cache")
    private(renderer, "_get_processor")
    renderer._image_cache = ImageTable(renderer, cache, fingerprint)


def send_once_client(client: Any, *, enabled: bool | None = None, **engine: Any) -> Any:
    """``client`` in a form that sends each image once, where that is switched on.

    ``enabled=None`` asks ``MEMWEIR_MM_HASH_CACHE``, then ``RENDERERS_MM_HASH_CACHE``, and is no:
    then the answer is ``client`` itself. ``engine`` is how the engine was started, as
    :func:`memweir.integrations.vllm.send_once` takes it.
    """
    if not _switch("MM_HASH_CACHE", enabled, default=False):
        return client
    from memweir.integrations.vllm import SendOnceClient, send_once

    return SendOnceClient(client, send_once(**engine))


def _switch(name: str, given: bool | None, *, default: bool) -> bool:
    """A setting that the environment may make: ours first, then as upstream's proposal named it."""
    if given is not None:
        return given
    for variable in (f"MEMWEIR_{name}", f"RENDERERS_{name}"):
        text = os.environ.get(variable)
        if text is not None:
            lower = text.strip().lower()
            if lower not in _YES | _NO:
                raise ValueError(f"{variable} is a switch, 0 or 1, not {text!r}")
            return lower in _YES
    return default
