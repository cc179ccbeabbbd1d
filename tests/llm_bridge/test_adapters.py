"""What trains, what stays, and adapter folders: saved small, loaded in one call, merged, changed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedModel,
    pipeline,
)

from llm_bridge import (
    RegionBridgeForConditionalGeneration,
    RegionBridgeProcessor,
    RegionChat,
    adapter_off,
    add_lora,
    count_parameters,
    load_adapter,
    merge_lora,
    remove_lora,
    set_trainable,
    use_adapter,
)
from llm_bridge.language_model import load_language_model
from tap_tokenizer import TapRegionTokenizer

Pair = tuple[RegionBridgeForConditionalGeneration, RegionBridgeProcessor]
BOXES = [[5, 5, 40, 30]]


def steps(bridge: RegionBridgeForConditionalGeneration, inputs: Any, count: int = 4) -> list[float]:
    """A few steps of training on one prompt; the losses."""
    learning = [p for p in bridge.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == bridge.config.region_token_id, -100)
    bridge.train()
    losses = []
    for _ in range(count):
        loss = bridge(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    bridge.eval()
    return losses


@pytest.fixture
def folder(language_model: Callable[..., PreTrainedModel], text_tokenizer: Callable[..., Any], tmp_path: Path) -> Path:
    """A language model on disk."""
    language_model().save_pretrained(tmp_path / "lm")
    text_tokenizer().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def pair(folder: Path, tiny_tokenizer: TapRegionTokenizer) -> Pair:
    """A bridge on a language model that has a name."""
    torch.manual_seed(0)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(str(folder), region_tokenizer=tiny_tokenizer)
    return bridge, RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tiny_tokenizer)


def logits(bridge: RegionBridgeForConditionalGeneration, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return bridge(**inputs).logits


@pytest.mark.parametrize("mode", ["projector", "lora", "full"])
def test_only_adapter_and_projector_are_trained(pair: Pair, picture: Image.Image, mode: str) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    if mode == "lora":
        add_lora(bridge, r=4)
    names = set_trainable(bridge, mode)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in bridge.named_parameters()}
    losses = steps(bridge, inputs)
    assert losses[-1] < losses[0]
    for name, parameter in bridge.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved <= (name in names), name
        is_projector, is_adapter = name.startswith("projector."), ".lora_" in name
        assert (name in names) == (is_projector or mode == "full" or (mode == "lora" and is_adapter)), name
        if name in names:
            assert moved, name
    assert "parameters are trained" in count_parameters(bridge)


def test_lora_on_every_family(make_bridge: Callable[..., Pair], picture: Image.Image, family: str) -> None:
    bridge, processor = make_bridge(family)
    inputs = processor("is <region> red", picture, boxes=BOXES)
    before = logits(bridge, inputs)
    add_lora(bridge, r=2)
    torch.testing.assert_close(logits(bridge, inputs), before)  # a fresh adapter changes nothing
    assert not any(
        "projector" in name or "lm_head" in name for name in set_trainable(bridge, "lora") if ".lora_" in name
    )
    losses = steps(bridge, inputs)
    assert losses[-1] < losses[0]
    trained = logits(bridge, inputs)
    merge_lora(bridge)
    torch.testing.assert_close(logits(bridge, inputs), trained, rtol=1e-3, atol=1e-3)
    assert bridge.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


def test_an_adapter_folder_is_small_and_loads_in_a_fresh_process(
    pair: Pair, picture: Image.Image, tmp_path: Path
) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    bridge.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    names = {str(p.relative_to(tmp_path / "adapter")) for p in (tmp_path / "adapter").rglob("*")}
    peft_files = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert {"projector.safetensors", "config.json", "README.md"} | peft_files <= names
    assert "model.safetensors" not in names
    peft_config = json.loads((tmp_path / "adapter" / "adapter" / "adapter_config.json").read_text())
    assert peft_config["base_model_name_or_path"].endswith("lm")
    assert "LoRA of rank 2" in (tmp_path / "adapter" / "README.md").read_text()
    want = logits(bridge, inputs)
    for loaded in (
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "adapter"),
        AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter"),
    ):
        assert torch.equal(logits(loaded, inputs), want)
    picture.save(tmp_path / "p.png")
    code = (
        "from llm_bridge import RegionChat\n"
        f"print(RegionChat.from_pretrained({str(tmp_path / 'adapter')!r}).ask('is <region> red', "
        f"image={str(tmp_path / 'p.png')!r}, boxes={BOXES}, max_new_tokens=4))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    from llm_bridge import RegionChat

    here = RegionChat(bridge, processor).ask("is <region> red", image=picture, boxes=BOXES, max_new_tokens=4)
    assert done.stdout.strip() == here


def train_a_little(bridge: RegionBridgeForConditionalGeneration) -> None:
    """Give every adapted layer a change that shows."""
    with torch.no_grad():
        for name, parameter in bridge.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)


def renamed(folder: Path, old: str, new: str) -> None:
    """Give the weights of a folder's adapter other names."""
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({name.replace(old, new): weight for name, weight in load_file(path).items()}, path)


def test_an_adapter_has_the_names_of_the_plain_language_model(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    plain = {f"base_model.model.{n}" for n, m in bridge.language_model.named_modules() if type(m) is torch.nn.Linear}
    for name in ("default", "other"):
        add_lora(bridge, r=2, name=name).save_pretrained(tmp_path / name)
        weights = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        assert {key.partition(".lora_")[0] for key in weights} == plain - {"base_model.model.lm_head"}
        assert {key.partition(".lora_")[2] for key in weights} == {"A.weight", "B.weight"}
        config = json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text())
        assert config["task_type"] == "CAUSAL_LM"
        assert config["base_model_name_or_path"] == bridge.config.language_model
        assert not config["modules_to_save"]
        assert not config["trainable_token_indices"]


def test_a_bridge_from_an_adapter_folder_knows_where_it_came_from(pair: Pair, tmp_path: Path) -> None:
    bridge, processor = pair
    mine = tmp_path / "mine"
    add_lora(bridge, r=2).save_pretrained(mine)
    processor.save_pretrained(mine)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(mine)
    assert loaded.config.name_or_path == str(mine)
    assert f"{tmp_path.name}/mine" in repr(RegionChat(loaded, processor))
    ask = pipeline("region-text-generation", model=loaded, region_tokenizer=processor.region_tokenizer)
    assert ask.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    loaded.save_pretrained(tmp_path / "again")
    assert "mine" not in (tmp_path / "again" / "config.json").read_text()


def test_a_folder_of_an_earlier_version_still_loads(tmp_path: Path) -> None:
    """Its adapter had the same names; its config had others."""
    bridge = RegionBridgeForConditionalGeneration.from_pretrained("region-chat-tiny")
    add_lora(bridge, r=2)
    train_a_little(bridge)
    bridge.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["reads_padding"] = config.pop("ignores_padding")
    del config["projector_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path)
    words = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    assert torch.equal(logits(loaded, words), logits(bridge.eval(), words))
    assert not torch.equal(logits(loaded, words), logits(remove_lora(bridge), words))


@pytest.mark.parametrize(
    "wrapped", ["base_model.model.language_model.model.", "base_model.model.base_model.model.model."]
)
def test_an_adapter_with_weights_of_no_layer_is_refused(
    pair: Pair, picture: Image.Image, tmp_path: Path, wrapped: str
) -> None:
    """peft, like servers, would drop them in silence and answer as the bare language model does."""
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2)
    train_a_little(bridge)
    bridge.eval().save_pretrained(tmp_path / "good")
    bridge.save_pretrained(tmp_path / "bad")
    renamed(tmp_path / "bad", "base_model.model.model.", wrapped)
    message = (
        rf"adapter_model\.safetensors holds 28 weights that belong to no adapted layer of LlamaForCausalLM, such as "
        rf"{wrapped}layers\.0\.\S*weight: expected names such as base_model\.model\.model\.layers\.0\.\S*lora_A\.weight\. Save"
    )
    with pytest.raises(ValueError, match=message):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "bad")
    trained = logits(bridge, inputs)
    with pytest.raises(ValueError, match=message):
        load_adapter(bridge, tmp_path / "bad", "other")
    assert torch.equal(logits(bridge, inputs), trained)
    assert list(bridge.language_model.peft_config) == ["default"]
    bare = logits(remove_lora(bridge), inputs)
    with pytest.raises(ValueError, match=message):
        load_adapter(bridge, tmp_path / "bad", "other")
    assert torch.equal(logits(bridge, inputs), bare)
    load_adapter(bridge, tmp_path / "good", "other")
    assert torch.equal(logits(bridge, inputs), trained)
    with pytest.raises(ValueError, match="The checkpoint holds 28 weights"):
        bridge.load_state_dict(load_file(tmp_path / "bad" / "adapter" / "adapter_model.safetensors"))


def test_one_weight_of_no_layer_is_enough_for_a_refusal(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    add_lora(bridge, r=2, targets=["q_proj", "k_proj"])
    bridge.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter" / "adapter_config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "target_modules": ["q_proj"]}))
    with pytest.raises(
        ValueError, match=r"holds 4 weights .* such as \S*k_proj\.lora_A\.weight: .*q_proj\.lora_A\.weight"
    ):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    path.write_text(json.dumps({**written, "target_modules": ["language_model.model.layers.0.self_attn.q_proj"]}))
    message = (
        r"has target_modules such as 'language_model\.\S*', and LlamaForCausalLM has no such layer: .*such as lm_head"
    )
    with pytest.raises(ValueError, match=message):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        load_adapter(bridge, tmp_path / "a", "other")


def test_an_untrained_adapter_is_loaded_with_a_warning(
    pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bridge, _ = pair
    words = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    bare = logits(bridge, words)
    add_lora(bridge, r=2).save_pretrained(tmp_path / "untrained")
    train_a_little(bridge)
    bridge.save_pretrained(tmp_path / "trained")
    assert not caplog.records
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "untrained")
    assert "untrained/adapter changes nothing, because all of its B matrices are zero" in caplog.text
    assert torch.equal(logits(loaded, words), bare)
    caplog.clear()
    load_adapter(loaded, tmp_path / "trained", "trained")
    trained = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "trained")
    assert not caplog.records
    assert torch.equal(logits(loaded, words), logits(trained, words))
    assert not torch.equal(logits(trained, words), bare)
    load_adapter(trained, tmp_path / "untrained", "untrained")
    assert "changes nothing" in caplog.text


def test_a_merged_language_model_is_a_plain_one(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    words = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    names = bridge.language_model.state_dict().keys()
    add_lora(bridge, r=2)
    train_a_little(bridge)
    bridge.save_pretrained(tmp_path / "a")
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    adapted = logits(loaded, words)
    merge_lora(loaded).language_model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.state_dict().keys() == names
    assert torch.equal(merged(**words).logits, logits(loaded, words))
    torch.testing.assert_close(merged(**words).logits, adapted, rtol=1e-3, atol=1e-3)


def test_a_projector_alone_is_a_folder_too(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    bridge.save_pretrained(tmp_path / "p", whole=False)
    assert not (tmp_path / "p" / "adapter").exists()
    inputs = processor("is <region> red", picture, boxes=BOXES)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "p")
    assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))


def test_removing_lora_restores_the_language_model(pair: Pair, picture: Image.Image) -> None:
    bridge, processor = pair
    text = processor("where is it")
    inputs = processor("is <region> red", picture, boxes=BOXES)
    before = logits(bridge, text)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    assert not torch.equal(logits(bridge, text), before)
    remove_lora(bridge)
    assert torch.equal(logits(bridge, text), before)


@pytest.mark.parametrize("mode", ["projector", "lora"])
def test_an_adapter_that_is_off_leaves_the_plain_language_model(pair: Pair, picture: Image.Image, mode: str) -> None:
    bridge, processor = pair
    text = processor("where is it")
    inputs = processor("is <region> red", picture, boxes=BOXES)
    before = logits(bridge, text)
    with adapter_off(bridge):
        assert torch.equal(logits(bridge, text), before)  # there is none yet
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    learning = set_trainable(bridge, mode)  # type: ignore[arg-type]
    changed = logits(bridge, text)
    with adapter_off(bridge):
        assert torch.equal(logits(bridge, text), before)
    assert torch.equal(logits(bridge, text), changed)
    assert [name for name, parameter in bridge.named_parameters() if parameter.requires_grad] == learning


def test_removing_lora_restores_the_bridges_own_projector(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    own = logits(bridge, inputs)
    bridge.save_pretrained(tmp_path / "own", whole=False)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    trained = logits(bridge, inputs)
    bridge.save_pretrained(tmp_path / "a")
    assert torch.equal(logits(remove_lora(bridge), inputs), own)
    bare = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "own")
    for name in ("first", "second"):
        load_adapter(bare, tmp_path / "a", name)
        assert torch.equal(logits(bare, inputs), trained)
    assert torch.equal(logits(remove_lora(bare), inputs), own)
    load_adapter(bare, tmp_path / "a", "again")
    assert torch.equal(logits(merge_lora(bare), inputs).argmax(-1), trained.argmax(-1))  # the adapter's projector stays


@pytest.mark.parametrize(
    "name",
    [
        "v1.0",
        "",
        "..",
        " ",
        "a/b",
        "a\\b",
        "a\nb",
        "end ",
        "keys",
        "train",
        "model",
        "layers",
        "0",
        "q_proj",
        "weight",
        "lora_A",
    ],
)
def test_names_that_no_adapter_can_have_are_refused(pair: Pair, tmp_path: Path, name: str) -> None:
    bridge, _ = pair
    names = [n for n, _ in bridge.named_parameters()]
    with pytest.raises(ValueError, match=r"An adapter cannot be named .*: use letters, digits"):
        add_lora(bridge, r=2, name=name)
    assert [n for n, _ in bridge.named_parameters()] == names
    add_lora(bridge, r=2).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="An adapter cannot be named"):
        load_adapter(bridge, tmp_path / "a", name)


def test_names_may_have_spaces_accents_and_other_scripts(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    for name in ("été 2", "v1-0", "_x", "语言"):
        add_lora(bridge, r=2, name=name)
        learning = set_trainable(bridge, "lora")
        assert all(f".{name}." in n or n.startswith("projector.") for n in learning)
        steps(bridge, inputs, 1)
        bridge.save_pretrained(tmp_path / name)
        loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / name)
        assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))
    with pytest.raises(ValueError, match="There is an adapter 'v1-0' already"):
        add_lora(bridge, r=2, name="v1-0")


def test_adapters_side_by_side(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    want = {}
    for name in ("first", "second"):
        add_lora(bridge, r=2, name=name)
        learning = set_trainable(bridge, "lora")
        assert all(f".{name}." in n or n.startswith("projector.") for n in learning)
        steps(bridge, inputs, 2)
        want[name] = logits(bridge, inputs)
        bridge.save_pretrained(tmp_path / name)
    assert not torch.equal(want["first"], want["second"])
    for name in ("first", "second", "first"):
        use_adapter(bridge, name)
        assert torch.equal(logits(bridge, inputs), want[name])
    with pytest.raises(ValueError, match="There is no adapter 'third'; there are: first, second"):
        use_adapter(bridge, "third")
    fresh = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "first")
    load_adapter(fresh, tmp_path / "second", "other")
    assert torch.equal(logits(fresh, inputs), want["second"])
    use_adapter(fresh, "default")
    assert torch.equal(logits(fresh, inputs), want["first"])


def test_merged_bridges_are_saved_whole(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    with pytest.raises(ValueError, match=r"merge_lora\(bridge\) first, or save with whole=False"):
        bridge.save_pretrained(tmp_path / "whole", whole=True)
    merge_lora(bridge).save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))
    with pytest.raises(ValueError, match="holds its own language model"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole", language_model="x")


def test_a_folder_holds_what_was_saved_last(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    """An adapter folder, then one with the projector alone, then a whole bridge, all in one place."""
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs)
    bridge.save_pretrained(tmp_path / "here")
    remove_lora(bridge)
    bridge.save_pretrained(tmp_path / "here", whole=False)
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "here")
    assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))
    add_lora(loaded, r=2)
    set_trainable(loaded, "lora")
    steps(loaded, inputs)
    merge_lora(loaded).save_pretrained(tmp_path / "here")
    again = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "here")
    assert torch.equal(logits(again, inputs), logits(loaded, inputs))
    assert not torch.equal(logits(again, inputs), logits(bridge, inputs))


def test_an_adapters_revision_is_not_its_language_models(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_bridge import adapter_folder

    pair[0].save_pretrained(tmp_path / "a", whole=False)
    asked: list[dict[str, Any]] = []
    load = adapter_folder._load_language_model

    def spy(bridge_class: Any, source: str, **options: Any) -> Any:
        asked.append(options)
        return load(bridge_class, source, **options)

    monkeypatch.setattr(adapter_folder, "_load_language_model", spy)
    RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a", revision="v2", local_files_only=True)
    assert asked == [{"dtype": "auto", "local_files_only": True}]


def test_an_interrupted_save_keeps_the_earlier_folder(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge, _ = pair
    bridge.save_pretrained(tmp_path / "a", whole=False)
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    monkeypatch.setattr("llm_bridge.adapter_folder.bridge_card", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with torch.no_grad():
        bridge.projector.linear_1.weight.add_(1)
    with pytest.raises(OSError, match="disk full"):
        bridge.save_pretrained(tmp_path / "a", whole=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before


def test_adapters_for_another_language_model_are_refused(
    pair: Pair, make_bridge: Callable[..., Pair], language_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    bridge, _ = pair
    add_lora(bridge, r=2).save_pretrained(tmp_path / "a")
    message = "was made for another language model .*: this one has model_type 'opt' instead of 'llama'"
    with pytest.raises(ValueError, match=message):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a", language_model=language_model("opt"))
    with pytest.raises(ValueError, match=message):
        load_adapter(make_bridge("opt")[0], tmp_path / "a", "x")
    stranger = language_model()
    with torch.no_grad():
        stranger.get_input_embeddings().weight.copy_(torch.randn_like(stranger.get_input_embeddings().weight))
    with pytest.raises(ValueError, match="this one has other weights"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a", language_model=stranger)
    for part in ("layers.0.mlp.up_proj", "layers.1.self_attn.k_proj", "layers.1.input_layernorm"):  # same embeddings
        tuned = type(stranger).from_pretrained(tmp_path / "lm")
        with torch.no_grad():
            weight = tuned.get_parameter(f"model.{part}.weight")
            weight.mul_(1 + 0.1 * torch.randn_like(weight))
        with pytest.raises(ValueError, match=f"this one has other weights in model.{part}.weight. Give the one"):
            RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a", language_model=tuned)
    half = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="There is an adapter 'default' already"):
        load_adapter(half, tmp_path / "a", "default")
    (tmp_path / "lm").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"could not be loaded: .* give language_model=…"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    moved = RegionBridgeForConditionalGeneration.from_pretrained(
        tmp_path / "a", language_model=str(tmp_path / "elsewhere")
    )
    assert moved.language_model.peft_config
    with pytest.raises(ValueError, match="is not an adapter folder"):
        load_adapter(moved, tmp_path / "elsewhere", "x")


def test_a_language_model_without_a_name_is_saved_beside_its_adapter(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path, family: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bridge, processor = make_bridge(family)
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2)
    set_trainable(bridge, "lora")
    steps(bridge, inputs, 2)
    bridge.save_pretrained(tmp_path / "a")
    assert "has no name to refer to, so it is saved in" in caplog.text
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))
    merge_lora(loaded).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / "language_model").exists()
    whole = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(whole, inputs), logits(loaded, inputs))


def test_a_bridge_refers_to_where_it_was_loaded_whole_from(
    make_bridge: Callable[..., Pair], picture: Image.Image, tmp_path: Path
) -> None:
    bridge, processor = make_bridge()
    inputs = processor("is <region> red", picture, boxes=BOXES)
    bridge.save_pretrained(tmp_path / "whole")
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")
    add_lora(loaded, r=2)
    set_trainable(loaded, "lora")
    steps(loaded, inputs, 2)
    with pytest.raises(ValueError, match="holds the language model that the adapter belongs to"):
        loaded.save_pretrained(tmp_path / "whole")
    loaded.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / "language_model").exists()
    again = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert again.config.language_model == str(tmp_path / "whole")
    assert torch.equal(logits(again, inputs), logits(loaded, inputs))
    bundled = RegionBridgeForConditionalGeneration.from_pretrained("region-chat-tiny")
    assert bundled.config.language_model == "region-chat-tiny"


def test_an_adapter_is_saved_as_the_same_files_in_every_process(tmp_path: Path) -> None:
    """In this one and in another, whose sets have another order."""
    code = (
        "import torch\n"
        "from llm_bridge import RegionBridgeForConditionalGeneration as Bridge, add_lora\n"
        "bridge = Bridge.from_pretrained('region-chat-tiny')\n"
        "torch.manual_seed(0)\n"
        "add_lora(bridge, r=2).save_pretrained(folder)\n"
    )
    exec(code, {"folder": tmp_path / "here"})
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    subprocess.run(
        [sys.executable, "-c", f"folder = {str(tmp_path / 'there')!r}\n{code}"],
        env={**os.environ, "PYTHONHASHSEED": seed}, timeout=180, check=True,
    )  # fmt: skip
    one, other = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("here", "there")
    )
    assert one == other
    modules = json.loads(one["adapter/adapter_config.json"])["target_modules"]
    assert modules == sorted(modules)
    assert len(modules) == 7


def test_folders_without_weight_sums_still_load(pair: Pair, picture: Image.Image, tmp_path: Path) -> None:
    bridge, processor = pair
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=2).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    for field in ("language_model_weights", "embedding_size", "reads_ids", "ignores_padding"):
        del config[field]
    path.write_text(json.dumps(config))
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    assert torch.equal(logits(loaded, inputs), logits(bridge, inputs))


def test_parts_that_cannot_be_trained_are_refused(make_bridge: Callable[..., Pair], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter to train: call add_lora first"):
        set_trainable(make_bridge()[0], "lora")
    with pytest.raises(ValueError, match="expected one of projector, lora, full"):
        set_trainable(make_bridge()[0], "everything")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected r and alpha above 0"):
        add_lora(make_bridge()[0], r=2, alpha=0)
    with pytest.raises(ValueError, match="neither a folder"):
        load_adapter(make_bridge()[0], tmp_path / "none", "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantization",
    [
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_8bit": True},
    ],
    ids=["4-bit", "8-bit"],
)
def test_qlora_on_cpu(
    language_model: Callable[..., PreTrainedModel],
    text_tokenizer: Callable[..., Any],
    tiny_tokenizer: TapRegionTokenizer,
    picture: Image.Image,
    tmp_path: Path,
    quantization: dict[str, Any],
) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "lm"
    language_model(hidden_size=64, intermediate_size=128, num_key_value_heads=4).save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    bridge = RegionBridgeForConditionalGeneration.from_language_model(
        str(folder), region_tokenizer=tiny_tokenizer, quantization_config=BitsAndBytesConfig(**quantization)
    )
    processor = RegionBridgeProcessor.for_bridge(bridge.config, region_tokenizer=tiny_tokenizer)
    assert type(bridge.projector.linear_1) is torch.nn.Linear  # in its own precision
    assert bridge.projector.linear_1.weight.dtype == torch.float32
    inputs = processor("is <region> red", picture, boxes=BOXES)
    add_lora(bridge, r=4)
    names = set_trainable(bridge, "lora")
    assert any(".lora_" in name for name in names)
    losses = steps(bridge, inputs, 6)
    assert losses[-1] < losses[0]
    want = logits(bridge, inputs)
    bridge.save_pretrained(tmp_path / "q")
    loaded = RegionBridgeForConditionalGeneration.from_pretrained(
        tmp_path / "q", quantization_config=BitsAndBytesConfig(**quantization)
    )
    torch.testing.assert_close(logits(loaded, inputs), want, rtol=1e-2, atol=1e-2)
    packed = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**quantization))
    alone = PeftModel.from_pretrained(packed, str(tmp_path / "q" / "adapter"))
    words = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    assert torch.equal(alone(**words).logits, logits(loaded, words))
    assert RegionBridgeForConditionalGeneration.from_pretrained(
        tmp_path / "q"
    ).language_model.peft_config  # in full precision
    assert bridge.generate(**inputs, max_new_tokens=3, do_sample=False).shape[0] == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_modules": "(.*)*(.*)*(.*)*(.*)*x"}, "take more than 2 seconds"),
        ({"rank_pattern": {"(.*)*(.*)*(.*)*(.*)*x": 2}}, "take more than 2 seconds"),
        ({"exclude_modules": "("}, "is not a regular expression"),
        ({"r": 10**9}, "expected 1 to 2"), ({"r": True}, "expected 1 to 2"),
        ({"rank_pattern": {"q": 10**6}}, "expected 1 to 2"),
        ({"rank_pattern": [1]}, "expected a table"),
        ({"layer_replication": [[0, 10**6]]}, "sets layer_replication"),
        ({"megatron_config": {"x": 1}, "megatron_core": "evil"}, "sets megatron_config, megatron_core"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**9}, "expected LORA"),
        ({"peft_type": ["LORA"]}, "expected LORA"),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "starts a computation"),
        ({"init_lora_weights": ["eva"]}, "starts a computation"),
    ],
)  # fmt: skip
def test_adapter_configs_with_unneeded_options_are_refused(
    pair: Pair, tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    """Patterns without end, ranks without measure, fields by which peft copies layers or imports modules."""
    bridge, _ = pair
    add_lora(bridge, r=2)
    bridge.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{words}"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=rf"adapter_config\.json.*{words}"):
        load_adapter(remove_lora(bridge), tmp_path / "a", "second")


def test_an_adapter_without_the_weights_that_it_names_is_refused(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    add_lora(bridge, r=2)
    bridge.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": ["lm_head"]}))
    with pytest.raises(ValueError, match=r"adapter cannot be loaded \(KeyError"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"adapter cannot be loaded \(KeyError"):
        load_adapter(remove_lora(bridge), tmp_path / "a", "second")


def test_an_adapter_beside_a_whole_model_is_refused(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    bridge.save_pretrained(tmp_path / "whole")
    bridge.language_model.save_pretrained(tmp_path / "words")
    for folder in (tmp_path / "whole", tmp_path / "words"):
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": "(.*)*(.*)*x"}))
        with pytest.raises(ValueError, match="holds an adapter beside its model"):
            load_language_model(str(folder))
    with pytest.raises(ValueError, match="holds an adapter beside its model"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "whole")


def test_an_adapter_whose_projector_has_other_sizes_is_refused(pair: Pair, tmp_path: Path) -> None:
    bridge, _ = pair
    add_lora(bridge, r=2)
    bridge.save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projector_hidden_size": 100_000}))
    with pytest.raises(ValueError, match=r"projector\.safetensors holds weights that do not fit its config\.json"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / "adapter" / "adapter_model.safetensors").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), "projector_hidden_size": None}))
    with pytest.raises(ValueError, match=r"Found no file at .*adapter_model\.safetensors"):
        RegionBridgeForConditionalGeneration.from_pretrained(tmp_path / "a")
