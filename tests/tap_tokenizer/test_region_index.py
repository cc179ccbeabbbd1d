"""RegionIndex: what is found is what comparing everything in float32 finds; files are whole and read as they are needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tap_tokenizer import RegionIndex, RegionTokens, TapRegionTokenizer, draw_hits, region_index


class CountedName(str):
    """The name of a picture; counts how often any of them is compared or looked up, which for N names must not grow as N²."""

    looked_up = 0

    def __hash__(self) -> int:
        CountedName.looked_up += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        CountedName.looked_up += 1
        return super().__eq__(other)


def tokens(vectors: torch.Tensor, pictures: int = 1, fingerprint: str = "mine") -> RegionTokens:
    """Regions with given embeddings (N, E), shared out among pictures of 40 × 30 pixels."""
    count = len(vectors)
    return RegionTokens(
        semantic_tokens=vectors.flip(-1)[:, None],
        semantic_embeds=vectors[:, None],
        iou_scores=torch.linspace(0.1, 0.9, count)[:, None],
        expert=torch.zeros(count, dtype=torch.long),
        boxes=torch.tensor([[1.0, 2.0, 11.0, 12.0]]).expand(count, 4),
        image_index=torch.arange(count) * pictures // max(count, 1),
        image_sizes=torch.tensor([[30, 40]] * pictures),
        fingerprint=fingerprint,
    )


def made(count: int = 300, width: int = 24, *, with_tokens: bool = False) -> RegionIndex:
    torch.manual_seed(3)
    index = RegionIndex(with_tokens=with_tokens)
    for batch in range(3):
        vectors = torch.randn(count // 3, width)
        words = [f"wörter {batch} {i}" for i in range(len(vectors))]
        names = ["even" if i % 2 == 0 else "odd" for i in range(len(vectors))]
        index.add(tokens(vectors, 2), [f"{batch}a.png", f"{batch}b.png"], captions=words, names=names)
    return index


def plain(index: RegionIndex, query: torch.Tensor, column: str = "embeds") -> torch.Tensor:
    """Cosines (N,) of all vectors with a query (width,), in float64."""
    stored = F.normalize(F.normalize(query, dim=0).half().double(), dim=0)
    return index.column(column).double() @ stored  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["embeds", "tokens"])
def test_an_example_finds_what_comparing_everything_finds(by: str) -> None:
    index = made(with_tokens=True)
    example = torch.randn(1, 24)
    hits = index.search(tokens(example), by=by, top_k=20)  # type: ignore[arg-type]
    scores = plain(index, example[0] if by == "embeds" else example[0].flip(-1), by)
    assert [hit.row for hit in hits] == scores.topk(20).indices.tolist()
    assert [hit.score for hit in hits] == pytest.approx(scores.topk(20).values.tolist(), abs=1e-6)
    first = hits[0]
    assert first.picture == f"{first.row // 100}{'ab'[first.row % 100 // 50]}.png"
    assert (first.caption, first.box) == (f"wörter {first.row // 100} {first.row % 100}", (1.0, 2.0, 11.0, 12.0))
    assert first.name == ("odd" if first.row % 2 else "even")


def test_ranks_are_exact_where_half_precision_cannot_tell_them_apart() -> None:
    torch.manual_seed(0)
    base, noise = torch.randn(64), torch.randn(4000, 64)
    index = RegionIndex()
    index.add(tokens(base + 0.01 * noise), ["a.png"])
    example = tokens((base + 0.01 * torch.randn(64))[None])
    scores = plain(index, example.embeds[0])
    rough = torch.mv(index.column("embeds"), F.normalize(example.embeds[0], dim=0).half())
    assert rough.topk(10).values.unique().numel() < 10  # so the test can fail
    hits = index.search(example)
    assert [hit.score for hit in hits] == pytest.approx(scores.topk(10).values.tolist(), abs=3e-7)


def test_faiss_serves_an_index_from_its_second_search_on_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[int] = []
    monkeypatch.setattr(region_index, "index_in_faiss", lambda vectors: made_of.append(len(vectors)))
    index, example = made(with_tokens=True), tokens(torch.randn(1, 24))
    index.search(example)
    index.search(example, by="tokens")
    assert made_of == []
    index.search(example)
    assert made_of == [300]
    index.add(tokens(torch.randn(5, 24)), ["new.png"])
    index.search(example)
    assert made_of == [300]
    index.search(example)
    assert made_of == [300, 305]


def test_searches_with_filters_put_nothing_into_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_index, "index_in_faiss", lambda vectors: pytest.fail("a copy that nobody reads"))
    index, example = made(), tokens(torch.randn(1, 24))
    for _ in range(3):
        index.search(example, names=["odd"])
    index.search(example)


def test_an_index_finds_the_same_with_faiss() -> None:
    pytest.importorskip("faiss", reason="needs faiss: the extra faiss")
    index, example = made(), tokens(torch.randn(1, 24))
    first, second = index.search(example, top_k=20), index.search(example, top_k=20)
    assert index._searched["embeds"][1].ntotal == 300
    assert second == first
    assert index.search(example, names=["odd"]) == made().search(example, names=["odd"])


def test_filters_leave_only_what_they_name() -> None:
    index = made()
    example = tokens(torch.randn(1, 24))
    everything = index.search(example, top_k=300)
    assert len(everything) == len(index) == 300
    odd = [hit for hit in everything if hit.name == "odd"]
    assert index.search(example, top_k=300, names=["odd"]) == odd
    assert index.search(example, top_k=300, pictures=["1a.png"]) == [
        hit for hit in everything if hit.picture == "1a.png"
    ]
    others = index.search(example, top_k=300, other_than=["1a.png", "0b.png"])
    assert others == [hit for hit in everything if hit.picture not in ("1a.png", "0b.png")]
    assert index.search(example, top_k=300, min_quality=0.5) == [hit for hit in everything if hit.quality >= 0.5]
    assert index.search(example, names=["nothing"]) == []


def test_examples_are_averaged() -> None:
    index, two = made(), torch.randn(2, 24)
    middle = F.normalize(two, dim=-1).half().float().mean(dim=0)
    rows = [hit.row for hit in index.search(tokens(two))]
    assert rows == (index.column("embeds").float() @ middle).topk(10).indices.tolist()


def test_words_and_examples_together_count_equally(tiny_tokenizer: TapRegionTokenizer) -> None:
    torch.manual_seed(1)
    regions = tokens(torch.randn(200, 16), fingerprint=tiny_tokenizer.fingerprint)
    index = RegionIndex()
    index.add(regions, ["a.png"])
    words = tiny_tokenizer.phrase_vectors(["thing 2"])[0]
    named, alike = plain(index, words), plain(index, regions.embeds[5])
    both = ((named - named.mean()) / named.std() + (alike - alike.mean()) / alike.std()) / 2
    hits = index.search(regions[5], words="thing 2", tokenizer=tiny_tokenizer, top_k=4)
    assert [hit.row for hit in hits] == both.topk(4).indices.tolist()
    assert [hit.score for hit in hits] == pytest.approx(both.topk(4).values.tolist(), abs=0.02)
    (only,) = index.search(words="thing 2", tokenizer=tiny_tokenizer, top_k=1)
    assert only.row == int(named.argmax())
    assert only.score == pytest.approx(float(named.max()), abs=1e-3)


def test_a_file_gives_the_same_hits(tmp_path: Path) -> None:
    index, example = made(with_tokens=True), tokens(torch.randn(1, 24))
    index.notes = {"folder": "pictures"}
    index.save(tmp_path / "index.safetensors")
    loaded = RegionIndex.load(tmp_path / "index.safetensors")
    assert loaded.search(example) == index.search(example)
    assert loaded.search(example, by="tokens") == index.search(example, by="tokens")
    assert (loaded.pictures, loaded.notes, repr(loaded)) == (index.pictures, index.notes, repr(index))
    assert [path.name for path in tmp_path.iterdir()] == ["index.safetensors"]


def test_vectors_are_read_from_the_disk_as_they_are_needed(tmp_path: Path) -> None:
    index = RegionIndex()
    index.add(tokens(torch.randn(60_000, 512)), ["a.png"])
    index.save(tmp_path / "index.safetensors")
    code = (
        "import sys, torch\nfrom tap_tokenizer import RegionIndex\n"
        "used = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "RegionIndex\nbefore = used()\nindex = RegionIndex.load(sys.argv[1])\nprint(used() - before)"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc")
    path = tmp_path / "index.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < path.stat().st_size / 3


def test_pictures_are_taken_out_and_added_again() -> None:
    index = made()
    rest = index.without(["0a.png", "2b.png"])
    assert [picture.name for picture in rest.pictures] == ["0b.png", "1a.png", "1b.png", "2a.png"]
    assert len(rest) == 200
    assert rest.texts("caption", [0, 199]) == ["wörter 0 50", "wörter 2 49"]
    assert torch.equal(rest.column("embeds"), made().column("embeds")[50:250])
    rest.add(tokens(torch.randn(1, 24)), ["0a.png"], stamps=["new"])
    assert rest.pictures[-1].stamp == "new"
    other = RegionIndex()
    other.add(tokens(torch.randn(2, 24)), ["x.png"])
    rest.extend(other)
    assert rest.column("picture").tolist()[-3:] == [4, 5, 5]


def test_many_pictures_take_no_more_looks_at_each_than_few() -> None:
    count = 200
    names = [CountedName(f"{i}.png") for i in range(count)]
    index, merged = RegionIndex(), RegionIndex()
    CountedName.looked_up = 0
    for name in names:
        index.add(tokens(torch.randn(1, 8)), [name])
        part = RegionIndex()
        part.add(tokens(torch.randn(1, 8)), [name])
        merged.extend(part)
    assert CountedName.looked_up <= 40 * count
    example = tokens(torch.randn(1, 8))
    CountedName.looked_up = 0
    assert len(index.search(example, pictures=names[1:], other_than=names[100:], top_k=count)) == 99
    assert len(index.without(names[100:]).pictures) == 100
    assert CountedName.looked_up <= 40 * count


def test_vectors_that_are_no_numbers_are_refused() -> None:
    index, vectors = RegionIndex(with_tokens=True), torch.randn(4, 24)
    vectors[2, 5] = torch.nan
    with pytest.raises(ValueError, match=r"Region 2 \(of b\.png\) has a vector with NaN or infinite numbers"):
        index.add(tokens(vectors, 2), ["a.png", "b.png"])
    assert (len(index), index.pictures) == (0, [])
    index.add(tokens(torch.randn(4, 24)), ["a.png"])
    with pytest.raises(ValueError, match="Region 2 of the example has a vector with NaN"):
        index.search(tokens(vectors))


@pytest.mark.parametrize("filters", [{"names": "odd"}, {"pictures": "0a.png"}, {"other_than": "0a.png"}])
def test_a_filter_is_a_list_and_not_a_string_of_letters(filters: dict[str, str]) -> None:
    (what, name), *_ = filters.items()
    with pytest.raises(ValueError, match=rf"{what} is '{name}', expected a list of names: give \['{name}'\]"):
        made().search(tokens(torch.randn(1, 24)), **filters)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pictures is '0a\.png', expected a list"):
        made().without("0a.png")


def test_a_picture_without_regions_is_in_the_index() -> None:
    index = RegionIndex()
    index.add(tokens(torch.zeros(0, 24)), ["empty.png"])
    assert (len(index), len(index.pictures)) == (0, 1)
    assert index.search(tokens(torch.randn(1, 24))) == []


def test_what_does_not_fit_is_refused(tmp_path: Path, tiny_tokenizer: TapRegionTokenizer) -> None:
    index = made()
    example = tokens(torch.randn(1, 24))
    with pytest.raises(ValueError, match=r"would have a picture twice 0a\.png"):
        index.add(example, ["0a.png"])
    with pytest.raises(ValueError, match="Got 2 captions, expected 1"):
        index.add(example, ["x.png"], captions=["a", "b"])
    with pytest.raises(ValueError, match="holds regions of the tokenizer mine, these are of other"):
        index.add(tokens(torch.randn(1, 24), fingerprint="other"), ["x.png"])
    with pytest.raises(ValueError, match="example's regions have the fingerprint other, the index mine"):
        index.search(tokens(torch.randn(1, 24), fingerprint="other"))
    with pytest.raises(ValueError, match="Got nothing to search for"):
        index.search()
    with pytest.raises(ValueError, match="Words need the region tokenizer"):
        index.search(words="cat")
    with pytest.raises(ValueError, match="This index holds no tokens"):
        index.search(example, by="tokens")
    with pytest.raises(ValueError, match="top_k is 0"):
        index.search(example, top_k=0)
    with pytest.raises(ValueError, match=r"The index has no picture 'gone\.png'"):
        index.search(example, pictures=["gone.png"])
    with pytest.raises(ValueError, match="The index is empty"):
        RegionIndex().save(tmp_path / "index.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "index.safetensors"
    made().save(path)
    tensors = load_file(path)
    about = {"format": "tap-region-index-1", "fingerprint": "mine", "notes": "{}"}
    for name, value, words in (
        ("picture", tensors["picture"] + 9, "regions of pictures that it does not list"),
        ("boxes", tensors["boxes"][:5], "has boxes of shape"),
        ("caption_lengths", tensors["caption_lengths"] + 1, "texts that are cut off"),
    ):
        save_file({**tensors, name: value}, path, about)
        with pytest.raises(ValueError, match=words):
            RegionIndex.load(path)
    save_file({"a": torch.zeros(1)}, path, about)
    with pytest.raises(ValueError, match="lacks boxes"):
        RegionIndex.load(path)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="is not an index of regions"):
        RegionIndex.load(path)


def test_a_sheet_shows_each_hit_and_says_what_it_cannot_read(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "0a.png")
    hits = made().search(tokens(torch.randn(1, 24)), pictures=["0a.png", "1a.png"], top_k=7)
    sheet = draw_hits(hits, tmp_path, columns=5)
    assert sheet.size == (5 * 236 + 12, 2 * 288 + 12)
    assert len({hit.picture for hit in hits}) == 2
    with pytest.raises(ValueError, match="Got 0 regions in 5 columns"):
        draw_hits([], tmp_path)


def test_a_sheet_shows_no_picture_that_lies_elsewhere(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "secret.png")
    (tmp_path / "pictures").mkdir()
    sheets = []
    for name in ("../secret.png", str(tmp_path / "secret.png"), "sub/../../secret.png"):
        index = RegionIndex()
        index.add(tokens(torch.randn(1, 24)), [name])
        sheets.append(draw_hits(index.search(tokens(torch.randn(1, 24))), tmp_path / "pictures"))
    for sheet in sheets:
        tile = sheet.crop((12, 12, 236, 100))  # above the words, it is empty
        assert tile.getcolors() == [(tile.width * tile.height, (225, 225, 222))]
