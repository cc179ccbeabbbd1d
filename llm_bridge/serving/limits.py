"""What clients of the server may ask of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """What one request may hold, and how many there may be.

    file_bytes, pixels: of a picture or a mask. images, regions, points: of a request; points of one region. characters: of a
    request's words in all. tasks: of a request of Label Studio's. new_tokens: of an answer. queue: requests that wait or are
    worked on, of all clients. seconds: that a request may wait and be worked on. body_seconds: that a request may take to
    arrive. cache_bytes: what is kept of the latest pictures. memory_bytes: what is kept of what the language model has read;
    with 0, nothing.
    """

    file_bytes: int = 10_000_000
    pixels: int = 16_000_000
    images: int = 4
    regions: int = 24
    points: int = 64
    characters: int = 20_000
    tasks: int = 100
    new_tokens: int = 512
    queue: int = 32
    seconds: float = 120.0
    body_seconds: float = 30.0
    cache_bytes: int = 500_000_000
    memory_bytes: int = 250_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("cache_bytes", "memory_bytes", "seconds", "body_seconds") else 1
            if not value >= least:
                raise ValueError(f"{name} is {value}, expected {least} or more.")

    @property
    def request_pixels(self) -> int:
        """How many pixels the pictures and masks of a request may have in all: so many pictures of the largest size."""
        return self.images * self.pixels

    @property
    def body_bytes(self) -> int:
        """How large a request may be: one picture of the largest size, or several smaller ones, and words."""
        return self.file_bytes * 4 // 3 + 400_000
