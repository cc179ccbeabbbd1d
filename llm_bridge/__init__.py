"""The bridge says: region tokens and text → text, by any causal language model.

Its model and its pipelines are registered with transformers as soon as both packages are imported, in whatever order.
"""

from typing import TYPE_CHECKING

from tap_tokenizer import lazy_names, once_transformers_is_there

if TYPE_CHECKING:  # exported: each name is loaded when it is first asked for
    from .adapter_folder import find_adapter, load_adapter
    from .adapters import (
        add_lora,
        count_parameters,
        has_adapter,
        merge_lora,
        remove_lora,
        set_trainable,
        use_adapter,
    )
    from .chat import RegionChat
    from .configuration_bridge import REGION_TOKEN, FeatureLayout, RegionBridgeConfig
    from .description import RegionBaseline, RegionDescription, describe_regions
    from .feature_rows import region_features
    from .generation import generate_text
    from .grounding import FoundRegions, find_answer, find_question
    from .modeling_bridge import RegionBridgeForConditionalGeneration, RegionBridgeOutput
    from .picture_context import PictureContext, grid_points
    from .pipelines import RegionCaptioningPipeline, RegionGroundingPipeline, RegionTextGenerationPipeline
    from .processing_bridge import RegionBridgeProcessor
    from .processing_described import DescribedRegionProcessor
    from .projector import MlpProjector
    from .prompt_memory import PromptMemory
if TYPE_CHECKING:  # shared with finetune, and promised to nobody
    from .adapters import adapter_off
    from .chat_markup import number_regions, region_numbers, replace_regions, with_meant_regions
    from .default_bridge import DEFAULT_BRIDGE, SMOLLM2
    from .description import PLACES, place_in_words, place_of_box
    from .generation import generate_each
    from .grounding import Candidates, asked_phrase, find_among, first_names, likelihoods, named_numbers, says_none
    from .model_card import bridge_card
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "REGION_TOKEN",
    "DescribedRegionProcessor",
    "FeatureLayout",
    "FoundRegions",
    "MlpProjector",
    "PictureContext",
    "PromptMemory",
    "RegionBaseline",
    "RegionBridgeConfig",
    "RegionBridgeForConditionalGeneration",
    "RegionBridgeOutput",
    "RegionBridgeProcessor",
    "RegionCaptioningPipeline",
    "RegionChat",
    "RegionDescription",
    "RegionGroundingPipeline",
    "RegionTextGenerationPipeline",
    "add_lora",
    "count_parameters",
    "describe_regions",
    "find_adapter",
    "find_answer",
    "find_question",
    "generate_text",
    "grid_points",
    "has_adapter",
    "load_adapter",
    "merge_lora",
    "region_features",
    "remove_lora",
    "set_trainable",
    "use_adapter",
]


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from tap_tokenizer import take_bundled_names

    from .configuration_bridge import RegionBridgeConfig
    from .modeling_bridge import RegionBridgeForConditionalGeneration
    from .pipelines import register_pipelines
    from .processing_bridge import RegionBridgeProcessor

    take_bundled_names(RegionBridgeConfig, checked=True)
    AutoConfig.register("region_bridge", RegionBridgeConfig, exist_ok=True)
    AutoModel.register(RegionBridgeConfig, RegionBridgeForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(RegionBridgeConfig, RegionBridgeForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(RegionBridgeConfig, RegionBridgeProcessor, exist_ok=True)
    register_pipelines()


once_transformers_is_there(__name__, _register)
