"""Every place that a region tokenizer can be loaded from; the Hub is a local server that speaks its file protocol."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_hub import HubServer, run_with_hub
from transformers import PreTrainedTokenizerFast

from tap_tokenizer import ConceptBank, TapRegionTokenizer
from tap_tokenizer import pretrained_files as places


@pytest.fixture
def hub(tmp_path: Path, original_checkpoint: Path, original_concepts: Path) -> Iterator[HubServer]:
    """A Hub with the original's repository, as the original lays it out, and one that we converted."""
    root = tmp_path / "hub"
    for name in ("tap_vit_x_v1_0", "tap_vit_x_v1_1"):
        (root / "original" / "tap" / "models").mkdir(parents=True, exist_ok=True)
        (root / "original" / "tap" / "models" / f"{name}.pkl").write_bytes(original_checkpoint.read_bytes())
    (root / "original" / "tap" / "concepts").mkdir()
    (root / "original" / "tap" / "concepts" / "merged_2560.pkl").write_bytes(original_concepts.read_bytes())
    (root / "original" / "tap" / "README.md").write_text("weights")
    tokenizer = TapRegionTokenizer.from_pretrained(original_checkpoint, concepts=original_concepts)
    tokenizer.text_tokenizer = word_tokenizer(64)
    tokenizer.save_pretrained(root / "ours" / "tap")
    server = HubServer(root)
    yield server
    server.server.shutdown()


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A vocabulary of a size."""
    from tokenizers import Tokenizer, models

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, size)}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "<unk>")), unk_token="<unk>")


def run(code: str, hub: HubServer, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a fresh process whose Hub is ours, with `load` at hand."""
    head = "from tap_tokenizer import TapRegionTokenizer\nload = TapRegionTokenizer.from_pretrained\n"
    return run_with_hub(head + code, hub, home, **variables)


def test_the_originals_repository(hub: HubServer, tmp_path: Path) -> None:
    """Downloads checkpoint and concepts, converts, and says how to get captions where the vocabulary is out of reach."""
    code = """
t = load("original/tap", variant="tap_vit_x_v1_1", concepts="merged_2560")
print(t.fingerprint, len(t.concepts), t.text_tokenizer)
print(t.source)
"""
    done = run(code, hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    fingerprint, concepts, text = done.stdout.splitlines()[0].split()
    assert (concepts, text) == ("12", "None")
    assert "'source': 'original/tap', 'variant': 'tap_vit_x_v1_1'" in done.stdout
    assert "Captions will not be available" in done.stderr
    assert places.DEFAULT_TEXT_TOKENIZER in done.stderr
    assert ("GET", "original/tap/resolve/main/models/tap_vit_x_v1_1.pkl") in hub.requests
    assert not any("v1_0" in path for _, path in hub.requests)
    hub.requests.clear()
    again = run(code, hub, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith(fingerprint)
    assert not hub.requests  # the download serves again without a network


def test_a_converted_repository(hub: HubServer, tmp_path: Path) -> None:
    code = """
import numpy as np
t = load("ours/tap")
r = t.encode(np.zeros((60, 90, 3), np.uint8), boxes=[[1, 1, 50, 50]])
print(t.caption(r), t.classify(r)[0][0][0])
from tap_tokenizer import TapModel, TapProcessor
from transformers import AutoModel, AutoProcessor
print(type(AutoModel.from_pretrained("ours/tap")).__name__, type(AutoProcessor.from_pretrained("ours/tap")).__name__)
"""
    done = run(code, hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "concept" in done.stdout
    assert "TapModel TapProcessor" in done.stdout


def test_the_hub_says_what_it_lacks(hub: HubServer, tmp_path: Path) -> None:
    """Each wrong request gets an error that names the way out."""
    requests = {
        'load("original/tap")': "variant=… (tap_vit_x_v1_0, tap_vit_x_v1_1)",
        'load("original/tap", variant="tap_vit_z")': "has no variant 'tap_vit_z'; it has: tap_vit_x_v1_0, tap_vit_x_v1_1",
        'load("original/tap", variant="tap_vit_x_v1_1", concepts="nouns")': "has no concepts 'nouns'",
        'load("no/body")': "no/body",
        'load("ours/tap", local_files_only=True)': "Download the file where there is a network and give its path",
    }
    code = "".join(
        f"try:\n    {call}\nexcept (ValueError, OSError) as e:\n    print(type(e).__name__, e)\n" for call in requests
    )
    done = run(code, hub, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    for message in requests.values():
        assert message in done.stdout


def test_the_bundled_model_loads_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, original_checkpoint: Path
) -> None:
    TapRegionTokenizer.from_pretrained(original_checkpoint).save_pretrained(tmp_path / "tap-test")
    monkeypatch.setattr(places, "BUNDLED", tmp_path)
    assert TapRegionTokenizer.from_pretrained("tap-test").source == {"source": "tap-test"}
    with pytest.raises(ValueError, match=r"Found nothing at tap-nest: expected a bundled model \(tap-test\)"):
        TapRegionTokenizer.from_pretrained("tap-nest")
    with pytest.raises(ValueError, match="has no variants: leave variant='x' out"):
        TapRegionTokenizer.from_pretrained("tap-test", variant="x")


def test_a_clone_of_the_originals_repository(hub: HubServer) -> None:
    clone = hub.root / "original" / "tap"
    tokenizer = TapRegionTokenizer.from_pretrained(clone, variant="tap_vit_x_v1_0")
    assert tokenizer.concepts is not None
    with pytest.raises(ValueError, match=r"has no config\.json"):
        TapRegionTokenizer.from_pretrained(clone)


def test_local_files_that_are_not_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"is a file, expected one of the original's \.pkl checkpoints"):
        TapRegionTokenizer.from_pretrained(tmp_path / "x.bin")
    with pytest.raises(ValueError, match="Found nothing at"):
        TapRegionTokenizer.from_pretrained(tmp_path / "nowhere")


def test_concepts_are_read_from_banks_and_files(
    original_checkpoint: Path, original_concepts: Path, tmp_path: Path
) -> None:
    bank = ConceptBank.from_vectors(["a", "b"], torch.randn(2, 32))
    bank.save(tmp_path / "bank.safetensors")
    for concepts, count in ((bank, 2), (tmp_path / "bank.safetensors", 2), (str(original_concepts), 12), (None, None)):
        tokenizer = TapRegionTokenizer.from_pretrained(original_checkpoint, concepts=concepts)
        assert (len(tokenizer.concepts) if tokenizer.concepts else None) == count
    with pytest.raises(ValueError, match="Found no concept file at"):
        TapRegionTokenizer.from_pretrained(original_checkpoint, concepts=tmp_path / "no.pkl")


def test_caption_vocabularies(original_checkpoint: Path, original_image: np.ndarray, tmp_path: Path) -> None:
    word_tokenizer(64).save_pretrained(tmp_path / "words")
    for wanted in (word_tokenizer(64), tmp_path / "words", str(tmp_path / "words")):
        tokenizer = TapRegionTokenizer.from_pretrained(original_checkpoint, text_tokenizer=wanted)
        captions = tokenizer.caption(tokenizer.encode(original_image, boxes=[[5, 5, 60, 70]]))
        assert isinstance(captions, list)
        assert captions[0].startswith("w")
    with pytest.raises(ValueError, match="has 65 words, the caption decoder 64"):
        TapRegionTokenizer.from_pretrained(original_checkpoint, text_tokenizer=word_tokenizer(65))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        TapRegionTokenizer.from_pretrained(original_checkpoint, text_tokenizer=tmp_path / "empty")
    with pytest.raises(ValueError, match="Found no text tokenizer at"):
        TapRegionTokenizer.from_pretrained(original_checkpoint, text_tokenizer=tmp_path / "no" / "where")


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small `tokenizer.model` in LLaMA's form."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    text = folder / "text.txt"
    text.write_text("\n".join(f"a {size} {colour} cat sits on the mat number {n}" for size in ("small", "large")
                              for colour in ("red", "green", "blue") for n in range(9)))  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


def test_sentencepiece_vocabularies(sentencepiece_model: Path) -> None:
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = places._read_sentencepiece(sentencepiece_model, reference.vocab_size())
    for text in ("a small red cat", "the mat, number 7", "naïve ☂"):
        ids = reference.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids).strip() == reference.decode(ids)


def test_llamas_vocabulary_is_known_by_its_md5(sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=r"expected eeec4125e9c7560836b4873b6f8e3025: captions need LLaMA-1's tokenizer\.model"
    ):
        places._read_sentencepiece(sentencepiece_model, 32000)
    digest = hashlib.md5(sentencepiece_model.read_bytes()).hexdigest()
    monkeypatch.setattr(places, "LLAMA_TOKENIZER_MD5", digest)
    assert len(places._read_sentencepiece(sentencepiece_model, 32000)) == 320


def test_missing_libraries_are_named(sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"needs sentencepiece and protobuf: pip install 'tap-bridge\[bridge\]'"):
        places._read_sentencepiece(sentencepiece_model, 320)
