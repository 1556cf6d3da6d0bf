"""What the demo runs: sixteen photographs, and who looks at them when."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BYTES_PER_IMAGE", "SIDE", "Plan", "Step", "frames", "photographs"]

SIDE = 768
"""Width and height of every photograph, in pixels."""

BYTES_PER_IMAGE = 54 * 54 * 1176 * 4
"""Bytes of one photograph after the processor: 54 x 54 patches of 1176 float32."""

SUBJECTS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "stereo_motorcycle",
)


class Step(NamedTuple):
    """One turn of one rollout: a look at one image."""

    rollout: int
    turn: int
    image: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Rollouts in groups; a group works on one task, so its rollouts see the same images."""

    rollouts: int = 32
    turns: int = 8
    group: int = 8
    images: int = 16

    @property
    def pixel_bytes(self) -> int:
        """Bytes of processed pixels if every step keeps its own."""
        return self.rollouts * self.turns * BYTES_PER_IMAGE

    def steps(self) -> Iterator[Step]:
        """Group after group; inside a group all rollouts take turn 0, then turn 1, ..."""
        for start in range(0, self.rollouts, self.group):
            members = range(start, min(start + self.group, self.rollouts))
            # Each group starts half a task further on: every image belongs to two groups.
            first = start // self.group * (self.turns // 2)
            for turn in range(self.turns):
                for rollout in members:
                    yield Step(rollout, turn, (first + turn) % self.images)

    def batches(self, size: int = 4) -> Iterator[list[Step]]:
        """The same steps as the trainer takes them: ``size`` samples at a time."""
        steps = list(self.steps())
        for start in range(0, len(steps), size):
            yield steps[start : start + size]

    def scaled_to(self, room: int) -> Plan:
        """This plan with as many rollouts as keep ``pixel_bytes`` within ``room`` bytes.

        Whole groups when there is room for one, else one smaller group; never less than a rollout.
        """
        fitting = min(self.rollouts, room // (self.turns * BYTES_PER_IMAGE))
        if fitting > self.group:
            fitting -= fitting % self.group
        return Plan(**{**asdict(self), "rollouts": max(1, fitting)})


def photographs() -> list[str]:
    """Sixteen distinct images as JPEG data URIs: two crops of each of eight photographs."""
    return [_square(crop, SIDE) for pixels in _subjects() for crop in _corners(pixels)]


def frames(count: int, side: int) -> Iterator[str]:
    """Distinct images of ``side``² as JPEG data URIs: crops that move over the photographs."""
    subjects = list(_subjects())
    for number in range(count):
        pixels = subjects[number % len(subjects)]
        step = number // len(subjects)
        crop = min(pixels.shape[:2]) * 3 // 4
        y, x = (5 * step % (room - crop + 1) for room in pixels.shape[:2])
        yield _square(pixels[y : y + crop, x : x + crop], side)


def _subjects() -> Iterator[NDArray[Any]]:
    from skimage import data

    for subject in SUBJECTS:
        pixels: Any = getattr(data, subject)()
        # Of a stereo pair and its disparity: the left eye.
        yield pixels[0] if isinstance(pixels, tuple) else pixels


def _square(pixels: NDArray[Any], side: int) -> str:
    from PIL import Image

    image = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
    return data_uri(image)


def _corners(pixels: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The top left and the bottom right square, three quarters of the short side wide."""
    side = min(pixels.shape[:2]) * 3 // 4
    yield pixels[:side, :side]
    yield pixels[-side:, -side:]


def data_uri(image: Any) -> str:
    """A PIL image as the JPEG data URI that chat messages carry."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
