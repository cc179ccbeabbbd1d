"""`RegionIndex`: the regions of many pictures in one file, found again by an example, by words, or by both.

Vectors are kept as unit vectors in float16, and a file's vectors are read from the disk as they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from .counts import counted
from .foreign_files import check_regular_file
from .nearest import best_rows, index_in_faiss
from .output_files import save_tensors
from .region_tokenizer import TapRegionTokenizer
from .region_tokens import RegionTokens
from .weight_files import damage_told

FORMAT = "tap-region-index-1"

Vectors: TypeAlias = Literal["embeds", "tokens"]

_TEXTS = ("caption", "name")
_NUMBERS = {"boxes": torch.float32, "quality": torch.float32, "picture": torch.int64}


@dataclass(frozen=True)
class IndexedPicture:
    """A picture of an index: its name, its size in pixels, and a stamp that changes with it, if one was given."""

    name: str
    height: int
    width: int
    stamp: str = ""


@dataclass(frozen=True)
class RegionHit:
    """A region that was found.

    row: its place in the index. score: the cosine of its vector and the query, at most 1; for an example together with words,
    by how many standard deviations its two cosines lie above the index's means, on average.
    picture, box (xyxy in its pixels), quality, caption and name: what is known of it; the last two are None if they are not.
    """

    row: int
    score: float
    picture: str
    box: tuple[float, float, float, float]
    quality: float
    caption: str | None
    name: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class RegionIndex:
    """N regions with a semantic embedding each and, if it was made with `with_tokens`, also a semantic token.

    >>> index = RegionIndex()
    >>> index.add(tokenizer.encode("a.png", boxes=boxes), ["a.png"])
    >>> index.save("regions.safetensors")
    >>> index = RegionIndex.load("regions.safetensors")
    >>> index.search(words="red umbrella", tokenizer=tokenizer)
    >>> index.search(like=tokenizer.encode("b.png", boxes=[box]), top_k=5)

    fingerprint: whose regions these are; an index holds those of one tokenizer. notes: a mapping of strings that is saved with
    the index, for whoever made it.
    """

    def __init__(self, *, with_tokens: bool = False) -> None:
        self.with_tokens = with_tokens
        self.fingerprint: str | None = None
        self.pictures: list[IndexedPicture] = []
        self.notes: dict[str, str] = {}
        self._names: set[str] = set()
        """Those of all pictures."""
        self._blocks: list[dict[str, Tensor]] = []
        self._searched: dict[Vectors, tuple[Tensor, Any]] = {}
        """Vectors that have been searched, and an index of faiss if they are in one."""

    def __len__(self) -> int:
        return sum(len(block["picture"]) for block in self._blocks)

    def __repr__(self) -> str:
        kinds = "embeddings and tokens" if self.with_tokens else "embeddings"
        held = f"{counted(len(self), 'region')} of {counted(len(self.pictures), 'picture')}"
        return f"RegionIndex({held}, {kinds}, {self.fingerprint!r})"

    # --- what is in it --------------------------------------------------------------------------------------------------

    def add(
        self,
        regions: RegionTokens,
        pictures: Sequence[str],
        *,
        captions: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        stamps: Sequence[str] | None = None,
    ) -> None:
        """Add the regions of some pictures, which the index does not have yet.

        pictures: a name for each picture of `regions`; stamps: what else identifies it. captions, names: for each region.
        Raises `ValueError` for vectors with NaN or infinite numbers, of which no cosine says anything.
        """
        given = {
            "captions": (captions, len(regions)),
            "names": (names, len(regions)),
            "stamps": (stamps, len(pictures)),
        }
        for what, (values, count) in given.items():
            if values is not None and len(values) != count:
                raise ValueError(f"Got {len(values)} {what}, expected {count}, in the order of regions and pictures.")
        if len(pictures) != regions.num_images:
            raise ValueError(
                f"Got {counted(len(pictures), 'name')} for {counted(regions.num_images, 'picture')}, expected one for each."
            )
        if self.fingerprint not in (None, regions.fingerprint):
            raise ValueError(
                f"The index holds regions of the tokenizer {self.fingerprint}, these are of {regions.fingerprint}: "
                "encode them with the same one, or begin another index."
            )
        if double := self._names.intersection(pictures) or len(set(pictures)) < len(pictures):
            which = f" {sorted(double)[0]}" if isinstance(double, set) else ""
            raise ValueError(f"The index would have a picture twice{which}: remove it first, or give it another name.")

        def region_of(row: int) -> str:
            return f"Region {row} (of {pictures[int(regions.image_index[row])]})"

        block = {
            "embeds": _unit(regions.embeds, region_of),
            "boxes": regions.boxes.float().cpu(),
            "quality": regions.quality.float().cpu(),
            "picture": regions.image_index.cpu().long() + len(self.pictures),
            **_as_bytes("caption", captions or [""] * len(regions)),
            **_as_bytes("name", names or [""] * len(regions)),
        }
        if self.with_tokens:
            block["tokens"] = _unit(regions.tokens, region_of)
        self.fingerprint = regions.fingerprint
        self._blocks.append(block)
        rows = zip(pictures, regions.image_sizes.tolist(), stamps or [""] * len(pictures))
        self._list(IndexedPicture(name, height, width, stamp) for name, (height, width), stamp in rows)

    def extend(self, other: RegionIndex) -> None:
        """Add all that another index of the same kind holds."""
        if other.with_tokens != self.with_tokens or self.fingerprint not in (
            None,
            other.fingerprint or self.fingerprint,
        ):
            raise ValueError(
                f"{other!r} does not fit {self!r}: they were made with another tokenizer or other vectors."
            )
        if double := self._names & other._names:
            raise ValueError(f"Both indexes have {sorted(double)[0]}: remove it from one of them.")
        first = len(self.pictures)
        self._blocks += [{**block, "picture": block["picture"] + first} for block in other._blocks]
        self._list(other.pictures)
        self.fingerprint = other.fingerprint or self.fingerprint

    def without(self, pictures: Collection[str]) -> RegionIndex:
        """The index without some pictures and their regions."""
        gone = _as_set("pictures", pictures)
        kept = [i for i, picture in enumerate(self.pictures) if picture.name not in gone]
        place = torch.full((len(self.pictures),), -1)
        place[kept] = torch.arange(len(kept))
        index = RegionIndex(with_tokens=self.with_tokens)
        index.fingerprint, index.notes = self.fingerprint, dict(self.notes)
        index._list(self.pictures[i] for i in kept)
        for block in self._blocks:
            rows = (place[block["picture"]] >= 0).nonzero()[:, 0]
            if len(rows) == len(block["picture"]):  # what lies on the disk stays there
                index._blocks.append({**block, "picture": place[block["picture"]]})
                continue
            texts = {name: _texts_of(block, name, rows.tolist()) for name in _TEXTS}
            columns = {name: column[rows] for name, column in block.items() if name.partition("_")[0] not in _TEXTS}
            columns["picture"] = place[columns["picture"]]
            index._blocks.append(
                columns | {k: v for name, own in texts.items() for k, v in _as_bytes(name, own).items()}
            )
        return index

    def column(self, name: Literal["embeds", "tokens", "boxes", "quality", "picture"]) -> Tensor:
        """What is kept of all regions: unit vectors (N, width) in float16, boxes (N, 4), quality (N,), picture numbers (N,)."""
        if name == "tokens" and not self.with_tokens:
            raise ValueError('This index holds no tokens: search by="embeds", or make it with with_tokens=True.')
        self._join()
        return self._blocks[0][name] if self._blocks else torch.zeros(0)

    def texts(self, name: Literal["caption", "name"], rows: Sequence[int]) -> list[str]:
        """Captions or names of some regions; "" where there is none."""
        self._join()
        return _texts_of(self._blocks[0], name, rows) if len(rows) else []

    def _list(self, pictures: Iterable[IndexedPicture]) -> None:
        """Put pictures behind those that are listed."""
        known = len(self.pictures)
        self.pictures.extend(pictures)
        self._names.update(picture.name for picture in self.pictures[known:])

    def _join(self) -> None:
        """Make one block of all, and let go of each as it is copied: they may fill half of the memory."""
        if len(self._blocks) < 2:
            return
        self._searched.clear()
        joined = {}
        for name in list(self._blocks[0]):
            parts = [block.pop(name) for block in reversed(self._blocks)]
            rows = sum(len(part) for part in parts)
            joined[name], start = parts[0].new_empty(rows, *parts[0].shape[1:]), 0
            while parts:
                part = parts.pop()
                joined[name][start : start + len(part)] = part
                start += len(part)
        self._blocks = [joined]

    # --- search ---------------------------------------------------------------------------------------------------------

    def search(
        self,
        like: RegionTokens | None = None,
        *,
        words: str | None = None,
        tokenizer: TapRegionTokenizer | None = None,
        by: Vectors = "embeds",
        top_k: int = 10,
        names: Collection[str] | None = None,
        pictures: Collection[str] | None = None,
        other_than: Collection[str] = (),
        min_quality: float = 0.0,
    ) -> list[RegionHit]:
        """The regions most like an example, or that words name, or both, best first.

        like: one region, or several that stand for one thing, whose vectors are averaged; by: whether semantic embeddings or
        semantic tokens are compared. words: a phrase, which `tokenizer`, whose regions these are, turns into a vector
        (`TapRegionTokenizer.phrase_vectors`). With both, each counts equally: cosines are put on a common scale first.
        names, pictures, other_than, min_quality: only regions with one of these names, in these pictures, not in those,
        of at least this quality.

        Every region is compared, and ranks and scores are those of exact arithmetic on the stored vectors. If faiss is
        installed, it compares them from the second search on, and holds a copy of the vectors in memory.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected 1 or more.")
        queries = self._queries(like, words, tokenizer, by)
        allowed = self._allowed(names, pictures, other_than, min_quality)
        if not int(allowed.sum()):
            return []
        parts = [(self.column(kind), query) for kind, query in queries]
        in_faiss = self._in_faiss(queries[0][0]) if len(parts) == 1 and bool(allowed.all()) else None
        rows, scores = best_rows(parts, allowed, top_k, in_faiss)
        return self._hits(rows, scores)

    def _in_faiss(self, kind: Vectors) -> Any:
        """The vectors in an index of faiss, from their second search of all on: one search takes less than copying them."""
        vectors = self.column(kind)
        searched, index = self._searched.get(kind, (None, None))
        if searched is vectors and index is None:
            index = index_in_faiss(vectors)
        self._searched[kind] = vectors, index if searched is vectors else None
        return self._searched[kind][1]

    def _queries(
        self, like: RegionTokens | None, words: str | None, tokenizer: TapRegionTokenizer | None, by: Vectors
    ) -> list[tuple[Vectors, Tensor]]:
        """Which vectors are compared with which query (width,), for each part of the question."""
        if like is None and words is None:
            raise ValueError("Got nothing to search for: give like=…, a region, or words=…, or both.")
        if by not in ("embeds", "tokens"):
            raise ValueError(f'by is {by!r}, expected "embeds" or "tokens".')
        queries: list[tuple[Vectors, Tensor]] = []
        if like is not None:
            if not len(like):
                raise ValueError("Got an example without regions, expected at least one.")
            self._check_origin(like.fingerprint, "The example's regions")
            vectors = _unit(like.embeds if by == "embeds" else like.tokens, lambda row: f"Region {row} of the example")
            queries.append((by, vectors.float().mean(dim=0)))
        if words is not None:
            if tokenizer is None:
                raise ValueError("Words need the region tokenizer that made the index: give tokenizer=….")
            self._check_origin(tokenizer.fingerprint, "The tokenizer's regions")
            queries.append(("embeds", tokenizer.phrase_vectors([words])[0]))
        return [(kind, F.normalize(query, dim=0)) for kind, query in queries]

    def _check_origin(self, fingerprint: str, what: str) -> None:
        if self.fingerprint not in (None, fingerprint):
            raise ValueError(
                f"{what} have the fingerprint {fingerprint}, the index {self.fingerprint}: use the tokenizer that made the "
                "index, or index the pictures again."
            )

    def _allowed(
        self,
        names: Collection[str] | None,
        pictures: Collection[str] | None,
        other_than: Collection[str],
        quality: float,
    ) -> Tensor:
        """Which regions (N,) pass the filters."""
        picture = self.column("picture").long()
        inside = self._names if pictures is None else _as_set("pictures", pictures)
        outside = _as_set("other_than", other_than)
        if missing := sorted((inside | outside) - self._names):
            raise ValueError(f"The index has no picture {missing[0]!r}: give names as in index.pictures.")
        wanted = [one.name in inside and one.name not in outside for one in self.pictures]
        allowed = torch.tensor(wanted, dtype=torch.bool)[picture]
        if quality > 0:
            allowed &= self.column("quality") >= quality
        if names is not None:
            rows, known = allowed.nonzero()[:, 0].tolist(), _as_set("names", names)
            allowed[rows] = torch.tensor([name in known for name in self.texts("name", rows)], dtype=torch.bool)
        return allowed

    def _hits(self, rows: list[int], scores: list[float]) -> list[RegionHit]:
        captions, names = (self.texts(kind, rows) for kind in ("caption", "name"))
        boxes, quality = self.column("boxes")[rows].tolist(), self.column("quality")[rows].tolist()
        pictures = self.column("picture")[rows].tolist()
        return [
            RegionHit(row, score, self.pictures[picture].name, tuple(box), own, caption or None, name or None)
            for row, score, picture, box, own, caption, name in zip(
                rows, scores, pictures, boxes, quality, captions, names
            )
        ]

    # --- files ----------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, completely or not at all."""
        path = Path(path)
        if not path.parent.is_dir():
            raise ValueError(f"There is no folder {path.parent}: make it first.")
        if self.fingerprint is None:
            raise ValueError("The index is empty: add regions first.")
        self._join()
        tensors = {name: column.contiguous() for name, column in self._blocks[0].items()}
        tensors |= _as_bytes("pictures", [json.dumps(asdict(picture)) for picture in self.pictures])
        save_tensors(
            path, tensors, {"format": FORMAT, "fingerprint": self.fingerprint, "notes": json.dumps(self.notes)}
        )

    @classmethod
    def load(cls, path: str | Path) -> RegionIndex:
        """Read what `save` wrote; vectors stay on the disk until they are compared. Raises `ValueError` for other files."""
        check_regular_file(path)
        with damage_told(path), safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"{path} is not an index of regions: expected a file that RegionIndex.save wrote.")
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is not a mapping
            index = cls(with_tokens="tokens" in columns)
            index.fingerprint, index.notes = about["fingerprint"], dict(json.loads(about["notes"]))
            _check_columns(columns, path)
            count = len(columns["pictures_lengths"])
            index._list(IndexedPicture(**json.loads(text)) for text in _texts_of(columns, "pictures", range(count)))
            if len(columns["picture"]) and not 0 <= columns["picture"].min() <= columns["picture"].max() < count:
                raise ValueError(f"{path} has regions of pictures that it does not list: make it again.")
            index._blocks = [{name: column for name, column in columns.items() if not name.startswith("pictures_")}]
        return index


def _check_columns(columns: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse columns that are missing, of another type, or of another length than the others."""
    texts = [f"{name}_{part}" for name in (*_TEXTS, "pictures") for part in ("bytes", "lengths")]
    if lacking := sorted({"embeds", *_NUMBERS, *texts} - set(columns)):
        raise ValueError(f"{path} lacks {', '.join(lacking)}: make it again.")
    count = len(columns["picture"])
    for name, column in columns.items():
        is_text = name.endswith("_bytes")
        wanted = _NUMBERS.get(name, torch.uint8 if is_text else torch.int64 if "_" in name else torch.float16)
        dimensions = 2 if name in ("embeds", "tokens", "boxes") else 1
        right_length = is_text or name == "pictures_lengths" or len(column) == count
        if column.dtype != wanted or column.ndim != dimensions or not right_length:
            raise ValueError(
                f"{path} has {name} of shape {tuple(column.shape)}, which does not fit the rest: make it again."
            )
    for name in (*_TEXTS, "pictures"):
        lengths = columns[f"{name}_lengths"]
        if (lengths < 0).any() or int(lengths.sum()) != len(columns[f"{name}_bytes"]):
            raise ValueError(f"{path} has texts that are cut off ({name}): make it again.")


def _unit(vectors: Tensor, which: Callable[[int], str]) -> Tensor:
    """Unit vectors (N, width) in float16. Raises `ValueError` if a number is not finite; `which` says whose vector a row is."""
    vectors = vectors.float().cpu()
    if unusable := (~vectors.isfinite().all(dim=-1)).nonzero()[:, 0].tolist():
        raise ValueError(
            f"{which(unusable[0])} has a vector with NaN or infinite numbers, expected finite ones: encode it again, in "
            "float32 or bfloat16 if this was float16."
        )
    return F.normalize(vectors, dim=-1).half()


def _as_set(what: str, names: Collection[str]) -> set[str]:
    """Names as a set. Raises `ValueError` for a single string, whose letters would be taken for names."""
    if isinstance(names, str):
        raise ValueError(f"{what} is {names!r}, expected a list of names: give [{names!r}].")
    return set(names)


def _as_bytes(name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as two tensors: their bytes in UTF-8, one after the other, and how many each has."""
    coded = [text.encode() for text in texts]
    joined = torch.frombuffer(bytearray(b"".join(coded)), dtype=torch.uint8) if any(coded) else torch.zeros(0).byte()
    return {f"{name}_bytes": joined, f"{name}_lengths": torch.tensor([len(text) for text in coded], dtype=torch.int64)}


def _texts_of(block: Mapping[str, Tensor], name: str, rows: Sequence[int]) -> list[str]:
    """Some of the texts of `_as_bytes`."""
    coded, lengths = block[f"{name}_bytes"].numpy(), block[f"{name}_lengths"]
    ends = lengths.cumsum(0)
    return [coded[int(ends[row] - lengths[row]) : int(ends[row])].tobytes().decode() for row in rows]
