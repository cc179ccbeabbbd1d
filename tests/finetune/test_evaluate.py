"""Every benchmark from its file to its table, on small files of ours; bad input counted and named; resumable, repeatable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("datasets")
pytest.importorskip("inflect")

from PIL import Image

from finetune import evaluate
from finetune.data.source import convert
from finetune.glyphs.records import GlyphScenesSource
from finetune.records import Record, open_image
from finetune.tasks import TASKS, dlc_bench
from finetune.tasks.task import DrawnTask
from llm_bridge import DEFAULT_BRIDGE

PLAIN = ("--caption_scorer", "plain")
SMALL = ("--model", "region-chat-tiny")
"""The default takes ten times as long, and one test asks it."""
QUICK = (*SMALL, "--rows", "caption decoder;concept head;language model", "--max_new_tokens", "8")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("records") / "val.jsonl"
    convert(GlyphScenesSource(output=str(path), scenes=5, split="val", turns=3, families="colour,size", workers=1))
    return path


@pytest.fixture(scope="module")
def published(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures with the files of every published layout."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "images").mkdir()
    samples = [json.loads(line) for line in records.read_text().splitlines()[:2]]
    images, annotations, osprey = [], [], []
    names = sorted({r["label"] for s in samples for r in s["regions"]})
    for number, sample in enumerate(samples, 1):
        file = f"{number:04d}.png"
        Image.fromarray(open_image(Record.from_dict(sample), folder)).save(folder / "images" / file)
        size = {"height": sample["height"], "width": sample["width"]}
        images.append({"id": number, "file_name": file, **size})
        for region in sample["regions"]:
            x1, y1, x2, y2 = region["box"]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(region["label"]) + 1,
                 "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
                 "segmentation": region["mask"], "caption": f"a {region['label']}"}
            )  # fmt: skip
        osprey.append(
            {"file_name": file, **size, "categories": [r["label"] for r in sample["regions"]],
             "annotations": [{"segmentation": r["mask"]} for r in sample["regions"]]}
        )  # fmt: skip
    categories = [{"id": i, "name": n, "frequency": "f"} for i, n in enumerate(names, 1)]
    write(folder / "coco.json", {"images": images, "annotations": annotations, "categories": categories})
    urls = [{**{k: v for k, v in i.items() if k != "file_name"}, "coco_url": f"http://a/images/{i['file_name']}",
             "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in images]  # fmt: skip
    write(folder / "lvis.json", {"images": urls, "annotations": annotations, "categories": categories})
    write(folder / "osprey.json", osprey)
    masks = [r["mask"] for r in samples[0]["regions"]]
    write(folder / "gar.json", [
        {"image": "0001.png", "mask_rles": masks[:1], "question": f"What colour is <Prompt0>?{i}",
         "choices": ["A. red", "B. blue"], "answer": "A", "type": kind}
        for i, kind in enumerate(("color", "shape"))
    ])  # fmt: skip
    lines = [{"question_id": i, "image": "0001.png", "text": f"Is there a {n} in the image?", "label": "yes" if i else "no"}
             for i, n in enumerate(["dog", names[0]])]  # fmt: skip
    (folder / "pope.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    choices = {"positive": [["told", 1], ["not told", 0]], "negative": [["told", -1], ["not told", 1]]}
    questions = [{"question": f"{kind}?", "choices": some, "type": kind} for kind, some in choices.items()]
    write(folder / "qa.json", {str(a["id"]): questions for a in annotations})
    write(folder / "class_names.json", {str(a["id"]): names[a["category_id"] - 1] for a in annotations})
    return folder


@pytest.fixture(scope="module")
def instruct_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Any causal language model: random, with the bundled vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from tap_tokenizer import bundled_or_given

    folder = tmp_path_factory.mktemp("instruct")
    words = AutoTokenizer.from_pretrained(bundled_or_given("region-chat-tiny"))
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=2048, eos_token_id=words.eos_token_id,
                         pad_token_id=words.pad_token_id)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def run(output: Path, *flags: str) -> dict[str, Any]:
    evaluate.main(["--output", str(output), *(() if "--model" in flags else SMALL), *flags])
    return dict(json.loads((output / "metrics.json").read_text()))


FILES = {
    **dict.fromkeys(("vg_full", "vg_glamm", "refcocog", "coco_classification", "coco_masks"), "coco.json"),
    **dict.fromkeys(("prompted_masks", "dlc_bench"), "coco.json"),
    **dict.fromkeys(("lvis_classification", "lvis_masks"), "lvis.json"),
    **dict.fromkeys(("lvis_labels", "paco_labels"), "osprey.json"),
    "gar_bench": "gar.json",
    "pope": "pope.jsonl",
}


def of_file(published: Path, name: str) -> list[str]:
    file = published / FILES[name]
    return ["--benchmark", name, "--annotations", str(file), "--images", str(published / "images")]


@pytest.mark.parametrize("name", [name for name in TASKS if name in FILES])
def test_every_benchmark_from_its_published_file(name: str, published: Path, tmp_path: Path) -> None:
    metrics = run(tmp_path, *of_file(published, name), *QUICK, *PLAIN)
    task = TASKS[name]
    rows = ["mask decoder"] if isinstance(task, DrawnTask) else ["caption decoder", "concept head", "language model"]
    assert list(metrics["rows"]) == rows
    assert metrics["subset"] == (name not in ("refcocog", "prompted_masks"))  # of these no whole is known
    assert metrics["n"]["pictures"] == (1 if name in ("gar_bench", "pope") else 2)
    assert metrics["protocol"]["version"] == task.version
    assert metrics["fingerprints"]["region tokenizer"]
    # a question that the bundled bridge never learned it may leave unanswered, which is counted
    silent = {"language model: empty answer"} if name == "gar_bench" else set()
    assert set(metrics["problems"]) <= silent
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {line["row"] for line in lines} == set(rows)
    if task.kind == "detections":
        assert metrics["rows"]["concept head"]["AP"] > 0.5
    if task.kind == "labels":
        assert metrics["rows"]["concept head"]["S-IoU (osprey)"] > 0.5
    if task.kind == "masks":
        assert metrics["rows"]["mask decoder"]["AP"] > 0.5
    if task.kind == "prompts":
        assert metrics["rows"]["mask decoder"]["mIoU box"] > 0.6
    if task.kind == "captions":
        assert metrics["rows"]["caption decoder"]["BLEU-1"] > 0.2
    table = (tmp_path / "table.md").read_text()
    assert f"| {rows[0]}" in table
    assert ("**subset" in table) == metrics["subset"]
    assert ("which has no size on record" in table) == (not metrics["subset"])
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] > 500


@pytest.mark.parametrize("name", ["refcocog", "lvis_labels", "coco_classification", "coco_masks", "prompted_masks"])
def test_benchmarks_on_records_of_ones_own(name: str, records: Path, tmp_path: Path) -> None:
    metrics = run(tmp_path, "--benchmark", name, "--data", str(records), "--limit", "2", *QUICK, *PLAIN)
    assert metrics["subset"]
    assert metrics["own_records"]
    assert all(rows for rows in metrics["rows"].values())
    assert "Published" not in (tmp_path / "table.md").read_text()


def test_glyph_scenes_with_every_row(instruct_model: str, tmp_path: Path) -> None:
    metrics = run(tmp_path, "--benchmark", "glyph_scenes", "--limit", "3", "--described_model", instruct_model)
    rows = metrics["rows"]
    assert list(rows) == ["caption decoder", "concept head", "described", "language model",
                          "language model, question only", "language model, shuffled regions"]  # fmt: skip
    assert rows["caption decoder"]["by_type"]["caption"]["accuracy"] > 0.6
    assert rows["language model"]["by_type"]["caption"]["accuracy"] > 0.6
    assert rows["language model"]["accuracy"] > rows["language model, question only"]["accuracy"] + 0.2
    assert rows["language model"]["accuracy"] > rows["language model, shuffled regions"]["accuracy"] + 0.2
    assert 0 < rows["language model"]["chance"] < 1
    for scores in rows.values():
        assert all("contained" in own for own in scores["by_type"].values())
    bridge = rows["language model"]
    assert 1 > bridge["contained"] >= bridge["accuracy"]
    assert not metrics["not_run"]


def test_answers_to_the_records_questions(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = run(tmp_path, "--data", str(records), "--history", "none", "--model", DEFAULT_BRIDGE)
    assert metrics["n"]["items"] == 15
    scores = metrics["rows"]["language model"]
    assert scores["accuracy"] > 0.8 > scores["majority"]
    assert "described; give any instruct model" in capsys.readouterr().out
    assert json.loads((tmp_path / "environment.json").read_text())["torch"]


@pytest.mark.parametrize("history", ["true", "none"])
def test_answers_by_the_type_that_a_records_question_has(history: str, records: Path, tmp_path: Path) -> None:
    samples = [json.loads(line) for line in records.read_text().splitlines()[:2]]
    answers = []
    for number, sample in enumerate(samples):
        for place, turn in enumerate(t for t in sample["conversations"] if t["role"] == "user"):
            del turn["type"]
            if place:
                turn["type"] = ("", "colour", "size")[place]
            answers.append(
                (f"{number}/q{place}", sample["conversations"][2 * place + 1]["content"] if place < 2 else "x")
            )
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    flags = ["--data", str(tmp_path / "mine.jsonl"), "--history", history, *given(tmp_path / "p", answers)]
    scores = run(tmp_path / "a", *flags)["rows"]["given predictions"]["by_type"]
    assert {kind: (group["questions"], group["accuracy"]) for kind, group in scores.items()} == {
        "GlyphScenes": (2, 1), "colour": (2, 1), "size": (2, 0),
    }  # fmt: skip


def test_two_runs_and_a_resumed_one_give_the_same_bytes(records: Path, tmp_path: Path) -> None:
    flags = ["--data", str(records), "--batch_size", "2", *QUICK]
    run(tmp_path / "a", *flags)
    run(tmp_path / "b", *flags)
    files = ("predictions.jsonl", "metrics.json", "table.md", "plot.png")
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    expected = [(tmp_path / "a" / file).read_bytes() for file in files]
    (tmp_path / "b" / "predictions.jsonl").unlink()
    (tmp_path / "b" / "parts").mkdir(exist_ok=True)
    lines = (tmp_path / "a" / "predictions.jsonl").read_text().splitlines(keepends=True)
    first = [line for line in lines if json.loads(line)["id"].split("/")[0] in ("0", "1")]
    (tmp_path / "b" / "parts" / "000000.jsonl").write_text("".join(first))
    (tmp_path / "b" / "parts" / "000001.jsonl.partial").write_text('{"torn')
    run(tmp_path / "b", *flags)
    assert [(tmp_path / "b" / file).read_bytes() for file in files] == expected
    with pytest.raises(ValueError, match="other history"):
        run(tmp_path / "b", *flags, "--history", "none")


@pytest.mark.slow
def test_accelerate_splits_the_work(records: Path, tmp_path: Path) -> None:
    flags = [
        "--data",
        str(records),
        "--batch_size",
        "2",
        "--rows",
        "caption decoder;concept head",
        "--device",
        "cpu",
        *SMALL,
    ]
    run(tmp_path / "one", *flags)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29533"]
    command += ["-m", "finetune.evaluate", "--output", str(tmp_path / "two"), *flags]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "one" / "predictions.jsonl").read_bytes() == (
        tmp_path / "two" / "predictions.jsonl"
    ).read_bytes()
    assert (tmp_path / "one" / "metrics.json").read_bytes() == (tmp_path / "two" / "metrics.json").read_bytes()
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2


def test_a_cache_gives_the_same_answers_and_another_records_is_refused(records: Path, tmp_path: Path) -> None:
    from finetune import cache_regions

    cache_regions.main(
        ["--data", str(records), "--output", str(tmp_path / "cache"), "--workers", "0", "--dtype", "float32"]
    )
    other = tmp_path / "other.jsonl"
    other.write_text("".join(records.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match="made from other records"):
        run(tmp_path / "a", "--data", str(other), "--cache", str(tmp_path / "cache"))
    cached = run(
        tmp_path / "b", "--data", str(records), "--cache", str(tmp_path / "cache"), *QUICK
    )  # whose model reads no picture context
    fresh = run(tmp_path / "c", "--data", str(records), *QUICK)
    assert cached["rows"] == fresh["rows"]


def test_a_judge_scores_descriptions(published: Path, instruct_model: str, tmp_path: Path) -> None:
    flags = [*of_file(published, "dlc_bench"), "--rows", "caption decoder"]
    before = run(tmp_path, *flags)
    assert "no judge yet" in " ".join(before["notes"])
    judged = [*flags, "--qa", str(published / "qa.json"), "--judge", instruct_model]
    metrics = run(tmp_path, *judged)
    scores = metrics["rows"]["caption decoder"]
    assert scores["average"] == pytest.approx((scores["positive"] + scores["negative"]) / 2)
    kept = (tmp_path / "judgements.jsonl").read_text()
    (tmp_path / "judgements.jsonl").write_text(kept + '{"torn')
    assert run(tmp_path, *judged) == metrics
    assert (tmp_path / "judgements.jsonl").read_text() == kept


# --- predictions of others, and bad input --------------------------------------------------------------------------


def given(path: Path, answers: list[tuple[str, str]]) -> list[str]:
    path.write_text("".join(json.dumps({"id": key, "answer": words}) + "\n" for key, words in answers))
    return ["--predictions", str(path)]


def test_missing_double_unknown_and_empty_predictions_are_named(published: Path, tmp_path: Path) -> None:
    content = json.loads((published / "coco.json").read_text())
    count = sum(a["image_id"] == 1 for a in content["annotations"])
    keys = [f"1_region_{i}" for i in range(count)] + [
        f"2_region_{i}" for i in range(len(content["annotations"]) - count)
    ]
    truth = {key: a["caption"] for key, a in zip(keys, content["annotations"])}
    perfect = run(tmp_path / "a", *of_file(published, "vg_full"), *PLAIN, *given(tmp_path / "p", list(truth.items())))
    assert perfect["rows"]["given predictions"]["BLEU-1"] == pytest.approx(1)
    assert perfect["rows"]["given predictions"]["ROUGE-L"] == pytest.approx(1)
    assert not perfect["problems"]
    answers = [*list(truth.items())[2:], (keys[-1], "again"), ("nobody", "a dog"), (keys[0], " ")]
    marked = run(tmp_path / "b", *of_file(published, "vg_full"), *PLAIN, *given(tmp_path / "p", answers))
    assert {kind: p["names"] for kind, p in marked["problems"].items()} == {
        "given predictions: no prediction": [keys[1]],
        "given predictions: prediction given twice, the first counts": [keys[-1]],
        "given predictions: prediction for an unknown id": ["nobody"],
        "given predictions: empty answer": [keys[0]],
    }
    assert marked["rows"]["given predictions"]["ROUGE-L"] == pytest.approx((len(keys) - 2) / len(keys))
    table = (tmp_path / "b" / "table.md").read_text()
    assert "| given predictions † |" in table
    assert "**Marked**" in table
    with pytest.raises(ValueError, match="another split"):
        run(tmp_path / "c", *of_file(published, "vg_full"), *PLAIN, *given(tmp_path / "p", [("7_region_1", "a")]))


def test_predicted_masks_are_scored_and_those_of_another_split_refused(published: Path, tmp_path: Path) -> None:
    content = json.loads((published / "coco.json").read_text())
    masks = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation")} | {"score": 0.5} for a in content["annotations"]
    ]
    path = tmp_path / "masks.json"
    write(path, masks)
    perfect = run(tmp_path / "a", *of_file(published, "coco_masks"), "--predictions", str(path))
    assert perfect["rows"]["given predictions"]["AP"] == pytest.approx(1)
    write(path, [*masks, {**masks[0], "image_id": 77}])
    with pytest.raises(ValueError, match="another split"):
        run(tmp_path / "b", *of_file(published, "coco_masks"), "--predictions", str(path))


def test_masks_from_a_detectors_boxes(published: Path, tmp_path: Path) -> None:
    content = json.loads((published / "coco.json").read_text())
    boxes = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.25} for a in content["annotations"]]
    write(tmp_path / "boxes.json", boxes)
    flags = [*of_file(published, "coco_masks"), "--boxes", str(tmp_path / "boxes.json")]
    run(tmp_path / "a", *flags)
    lines = [json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").read_text().splitlines()]
    assert {line["score"] for line in lines} == {0.25}
    write(tmp_path / "boxes.json", [{**boxes[0], "image_id": 9}])
    with pytest.raises(ValueError, match="which the reference lacks"):
        run(tmp_path / "b", *flags)


def test_a_picture_that_does_not_open_and_an_empty_reference_are_named(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published / "images", tmp_path / "images")
    (tmp_path / "images" / "0002.png").write_bytes((tmp_path / "images" / "0002.png").read_bytes()[:200])
    content = json.loads((published / "coco.json").read_text())
    content["annotations"][0]["caption"] = "  "
    content["annotations"][1]["bbox"][2] = 0
    write(tmp_path / "coco.json", content)
    flags = ["--annotations", str(tmp_path / "coco.json"), "--images", str(tmp_path / "images")]
    metrics = run(tmp_path / "a", "--benchmark", "refcocog", *flags, *PLAIN, "--rows", "caption decoder")
    problems = {kind: p["count"] for kind, p in metrics["problems"].items()}
    torn = sum(a["image_id"] == 2 for a in content["annotations"])
    assert problems == {
        "box empty or outside its picture": 1, "caption decoder: picture does not open": torn, "empty reference": 1,
    }  # fmt: skip
    assert metrics["n"]["items"] == len(content["annotations"]) - 2
    masks = run(tmp_path / "b", "--benchmark", "prompted_masks", *flags)
    assert masks["problems"]["mask decoder: picture does not open"]["count"] == torn


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--benchmark", "vg"], "expected one of vg_full"),
        (["--benchmark", "vg_full"], "needs its annotations"),
        (["--benchmark", "glyph_scenes", "--judge", "m"], "not about descriptions"),
        (["--benchmark", "glyph_scenes", "--limit", "0"], "1 or more"),
        (["--benchmark", "glyph_scenes", "--limit", "1", "--rows", "poet"], "rows has poet"),
        (
            ["--benchmark", "glyph_scenes", "--limit", "1", "--predictions", "none.jsonl"],
            "no predictions at none.jsonl",
        ),
    ],
)
def test_invalid_options_are_refused(flags: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", *flags)


def test_a_judge_without_inflect_is_refused_before_anything_is_loaded(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlc_bench, "find_spec", lambda name: None)
    flags = [
        *of_file(published, "dlc_bench"),
        "--qa",
        str(published / "qa.json"),
        "--judge",
        "m",
        "--model",
        "no-such-model",
    ]
    with pytest.raises(ValueError, match=r"A judge's questions need inflect \(pip install .*: install it"):
        run(tmp_path / "a", *flags)


def test_records_without_answers_are_refused(tmp_path: Path, records: Path) -> None:
    sample = json.loads(records.read_text().splitlines()[0])
    sample["conversations"] = sample["conversations"][:1]
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(sample) + "\n")
    with pytest.raises(ValueError, match="no answered questions"):
        run(tmp_path / "out", "--data", str(path))


def test_a_file_of_another_form_is_refused(published: Path, tmp_path: Path) -> None:
    for name, file, words in (
        ("gar_bench", "coco", "is not the file of"),
        ("coco_masks", "osprey", "is not the file of"),
    ):
        with pytest.raises(ValueError, match=words):
            run(
                tmp_path, "--benchmark", name, "--annotations", str(published / f"{file}.json"),
                "--images", str(published),
            )  # fmt: skip


# --- whole runs on files with faults -------------------------------------------------------------------------------


def with_mark(path: Path) -> str:
    """The same file with a byte-order mark in front."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return str(path)


@pytest.mark.parametrize("name", ["refcocog", "gar_bench", "pope", "lvis_labels"])
def test_files_with_a_byte_order_mark_or_in_latin_1(name: str, published: Path, tmp_path: Path) -> None:
    file = tmp_path / FILES[name]
    shutil.copy(published / file.name, file)
    flags = ["--benchmark", name, "--images", str(published / "images"), "--annotations", with_mark(file)]
    run(tmp_path / "a", *flags, *PLAIN, "--rows", "concept head")
    file.write_bytes('{"x": "ü"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file.name} is not UTF-8"):
        run(tmp_path / "b", *flags, *PLAIN)


def test_an_empty_answer_is_neither_yes_nor_no(published: Path, tmp_path: Path) -> None:
    """Not of a model that says nothing, nor of a picture that does not open: POPE's script takes it for a yes, and what was
    meant stands beside. A turned picture does not count as none."""
    shutil.copytree(published / "images", tmp_path / "images")
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(tmp_path / "images" / "0001.png") as picture:
        picture.convert("RGB").resize((90, 60)).save(tmp_path / "images" / "turned.jpg", exif=exif)
    (tmp_path / "images" / "torn.jpg").write_bytes((tmp_path / "images" / "turned.jpg").read_bytes()[:300])
    lines = [{"question_id": i, "image": image, "text": "Is there a dog in the image?", "label": label}
             for i, (image, label) in enumerate([("turned.jpg", "no"), ("torn.jpg", "yes"), ("torn.jpg", "no")])]  # fmt: skip
    (tmp_path / "pope.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    flags = ["--benchmark", "pope", "--annotations", str(tmp_path / "pope.jsonl"), "--images", str(tmp_path / "images")]
    metrics = run(tmp_path / "a", *flags, "--rows", "caption decoder")
    assert metrics["rows"]["caption decoder"] == pytest.approx(
        {"accuracy": 2 / 3, "precision": 1 / 2, "recall": 1, "F1": 2 / 3, "yes": 2 / 3, "accuracy (as meant)": 1 / 3,
         "neither": 2}
    )  # fmt: skip
    assert {kind: p["names"] for kind, p in metrics["problems"].items()} == {
        "caption decoder: answer that is neither yes nor no, a yes to the script": ["1/q0", "2/q0"],
        "caption decoder: picture does not open": ["1/q0", "2/q0"],
    }
    assert "| caption decoder † |" in (tmp_path / "a" / "table.md").read_text()
    answers = given(tmp_path / "p", [("0/q0", "No."), ("1/q0", ""), ("2/q0", "yes")])
    scores = run(tmp_path / "b", *flags, *answers)["rows"]["given predictions"]
    assert (scores["yes"], scores["neither"]) == (pytest.approx(2 / 3), 1)
    assert (scores["accuracy"], scores["accuracy (as meant)"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_judges_files_are_checked_before_anything_is_described(published: Path, tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    qa = json.loads((published / "qa.json").read_text())
    write(tmp_path / "qa" / "qa.json", qa)
    write(tmp_path / "qa" / "class_names.json", dict.fromkeys(list(qa)[1:], "cup"))
    flags = [*of_file(published, "dlc_bench"), "--model", "none", "--judge", "m", "--judge_url", "http://127.0.0.1:9/v1",
             "--qa", str(tmp_path / "qa" / "qa.json")]  # fmt: skip
    with pytest.raises(ValueError, match=r"has 1 region that .* lacks"):
        run(tmp_path / "a", *flags)
    for content, words in (
        ({"99999": next(iter(qa.values()))}, "is it the file of another split"),
        ({key: some[:1] for key, some in qa.items()}, "has a negative question"),
    ):
        write(tmp_path / "qa" / "qa.json", content)
        write(tmp_path / "qa" / "class_names.json", dict.fromkeys(content, "cup"))
        with pytest.raises(ValueError, match=words):
            run(tmp_path / "a", *flags)
    assert not (tmp_path / "a").exists()


def test_one_item_is_named_in_the_singular(published: Path, tmp_path: Path) -> None:
    content = json.loads((published / "coco.json").read_text())
    content["images"], content["annotations"] = content["images"][:1], content["annotations"][:1]
    write(tmp_path / "coco.json", content)
    flags = ["--annotations", str(tmp_path / "coco.json"), "--images", str(published / "images")]
    run(tmp_path / "a", "--benchmark", "vg_full", *flags, *PLAIN, "--rows", "caption decoder")
    table = (tmp_path / "a" / "table.md").read_text()
    assert "**subset: 1 item in 1 picture, of 232,935 items; not comparable with the whole**" in table


def test_a_subset_is_marked_with_its_size_and_the_whole(published: Path, tmp_path: Path) -> None:
    flags = of_file(published, "pope")
    run(tmp_path / "a", *flags, *given(tmp_path / "p", [("0/q0", "no"), ("1/q0", "yes")]))
    table = (tmp_path / "a" / "table.md").read_text()
    assert "**subset: 2 items in 1 picture, of 3,000 items; not comparable with the whole**" in table
    run(tmp_path / "b", *of_file(published, "coco_classification"), "--rows", "concept head")
    assert " in 2 pictures, of 5,000 pictures; not comparable" in (tmp_path / "b" / "table.md").read_text()


def test_predictions_edited_by_hand(records: Path, tmp_path: Path) -> None:
    """The run's own file with changed answers is refused, and scored as given, with all that is odd in it named."""
    flags = ["--data", str(records), "--limit", "2"]
    quick = [*flags, "--rows", "caption decoder;concept head", "--max_new_tokens", "8"]
    first = run(tmp_path / "a", *quick)
    path = tmp_path / "a" / "predictions.jsonl"
    whole = path.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    own = [line for line in lines if line["row"] == "concept head"]
    path.write_text(whole.replace('"answer": "', '"answer": "EDITED'))
    for edited in (path.read_text(), whole[:-20], whole + "\n"):
        path.write_text(edited)
        with pytest.raises(
            ValueError, match=r"predictions.jsonl has checksum .*, expected .*: delete it to predict again"
        ):
            run(tmp_path / "a", *quick)
    path.write_text(whole)
    (tmp_path / "a" / "predictions.sha256").rename(tmp_path / "kept")
    with pytest.raises(ValueError, match=r"expected that of predictions.sha256, which is not there"):
        run(tmp_path / "a", *quick)
    path.unlink()
    assert run(tmp_path / "a", *quick) == first
    assert (tmp_path / "a" / "predictions.sha256").read_text() == (tmp_path / "kept").read_text()
    changed = [line for line in lines if line is not own[0]] + [own[1], {**own[1], "id": "nobody"}]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    metrics = run(tmp_path / "b", *flags, "--predictions", str(tmp_path / "other.jsonl"))
    assert {kind: p["names"] for kind, p in metrics["problems"].items()} == {
        "concept head: no prediction": [own[0]["id"]],
        "concept head: prediction for an unknown id": ["nobody"],
        "concept head: prediction given twice, the first counts": [own[1]["id"]],
    }


@pytest.mark.parametrize(("torn", "words"), [('{"id": "0/q0"', "line 2 is not JSON"), ("{}", "ends within a line")])
def test_a_damaged_part_is_named(torn: str, words: str, records: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "000001.jsonl").write_text("{}\n" + torn)
    with pytest.raises(ValueError, match=rf"000001.jsonl is not a complete part of predictions \({words}.*: delete it"):
        run(tmp_path, "--data", str(records), "--model", "no-such-model")  # refused before a model is looked for


def test_a_folder_of_other_predictions_is_refused(published: Path, records: Path, tmp_path: Path) -> None:
    flags = of_file(published, "pope")
    answers = [("0/q0", "no"), ("1/q0", "yes")]
    with pytest.raises(ValueError, match="another split"):
        run(tmp_path / "a", *flags, *given(tmp_path / "p", [("7", "no")]))
    first = run(tmp_path / "a", *flags, *given(tmp_path / "p", answers))  # what could not be scored is not in the way
    kept = (tmp_path / "a" / "metrics.json").read_bytes()
    assert run(tmp_path / "a", *flags, *given(tmp_path / "same", answers)) == first
    with pytest.raises(ValueError, match=r"other predictions_checksum: choose another output"):
        run(tmp_path / "a", *flags, *given(tmp_path / "p", [("0/q0", "yes"), ("1/q0", "yes")]))
    with pytest.raises(ValueError, match=r"other .*fingerprints.*: choose another output"):
        run(tmp_path / "a", *flags, "--rows", "concept head")
    assert (tmp_path / "a" / "metrics.json").read_bytes() == kept
    (tmp_path / "a" / "about.json").unlink()
    with pytest.raises(ValueError, match=r"holds metrics.json without about.json"):
        run(tmp_path / "a", *flags, *given(tmp_path / "p", answers))
    run(tmp_path / "b", *flags, "--rows", "concept head")
    with pytest.raises(ValueError, match=r"other predictions_checksum.*model"):
        run(tmp_path / "b", *flags, "--predictions", str(tmp_path / "b" / "predictions.jsonl"))


def test_a_detectors_boxes_beyond_the_border(published: Path, tmp_path: Path) -> None:
    content = json.loads((published / "coco.json").read_text())
    width = content["images"][0]["width"]
    one = {"image_id": 1, "category_id": 1, "bbox": [width - 20, 10, 90, 30], "score": 0.5}
    write(tmp_path / "boxes.json", [one, {**one, "bbox": [5, 5, -1, 4]}])
    flags = [*of_file(published, "coco_masks"), "--boxes", str(tmp_path / "boxes.json")]
    for _ in range(2):  # the second time predictions are complete, and still all is named
        problems = run(tmp_path / "a", *flags)["problems"]
        assert problems["detector's box beyond its picture's border, clipped"]["names"] == ["detection 1"]
        assert problems["detector's box empty or outside its picture"]["names"] == ["detection 2"]
    write(tmp_path / "boxes.json", [one])
    with pytest.raises(ValueError, match="other boxes_checksum"):
        run(tmp_path / "a", *flags)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.mark.slow
def test_killed_midway_and_run_again_gives_the_same_bytes(records: Path, tmp_path: Path) -> None:
    flags = ["--data", str(records), "--batch_size", "1", *QUICK]
    run(tmp_path / "whole", *flags)
    command = [sys.executable, "-m", "finetune.evaluate", "--output", str(tmp_path / "cut"), *flags]
    process = subprocess.Popen(
        command, env=environment(), cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while len(list((tmp_path / "cut").glob("parts/*.jsonl"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "predictions.jsonl").exists()
    run(tmp_path / "cut", *flags)
    for file in ("predictions.jsonl", "metrics.json", "table.md", "plot.png", "about.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_without_java_the_error_says_what_to_install(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing is said in a line, and the scores have the name of their own protocol."""
    monkeypatch.setenv("PATH", str(tmp_path))
    flags = [*of_file(published, "refcocog"), "--rows", "caption decoder"]
    metrics = run(tmp_path / "a", *flags)
    line = next(line for line in capsys.readouterr().out.splitlines() if "need" in line and "Java" in line)
    assert "plain protocol, and do not compare" in line
    assert metrics["protocol"]["name"] == "refcocog (plain)"
    assert "METEOR" not in metrics["rows"]["caption decoder"]
    with pytest.raises(ValueError, match="caption_scorer is ptb"):
        run(tmp_path / "b", *flags, "--caption_scorer", "ptb")
    with pytest.raises(SystemExit) as shown:
        evaluate.main(["--help"])
    assert not shown.value.code
    assert "--benchmark" in capsys.readouterr().out
