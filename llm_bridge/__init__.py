"""The bridge says: region tokens and text → text, by any causal language model.

Importing it registers the bridge with transformers' Auto classes.
"""

from tap_tokenizer import help_is_wanted

if not help_is_wanted():
    from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

    from tap_tokenizer import take_bundled_names

    from .adapters import (
        add_lora,
        count_parameters,
        find_adapter,
        has_adapter,
        load_adapter,
        merge_lora,
        remove_lora,
        set_trainable,
        use_adapter,
    )
    from .chat import RegionBaseline, RegionChat
    from .chat_markup import number_regions, region_numbers, replace_regions
    from .configuration_bridge import REGION_TOKEN, RegionBridgeConfig
    from .description import RegionDescription, describe_regions
    from .generation import generate_text
    from .modeling_bridge import RegionBridgeForConditionalGeneration, RegionBridgeOutput
    from .picture_context import PictureContext, grid_points
    from .pipelines import RegionCaptioningPipeline, RegionTextGenerationPipeline, register_pipelines
    from .processing_bridge import RegionBridgeProcessor
    from .processing_described import DescribedRegionProcessor
    from .projector import RegionProjector
    from .region_features import region_features

    take_bundled_names(RegionBridgeConfig, checked=True)
    AutoConfig.register("region_bridge", RegionBridgeConfig, exist_ok=True)
    AutoModel.register(RegionBridgeConfig, RegionBridgeForConditionalGeneration, exist_ok=True)
    AutoModelForImageTextToText.register(RegionBridgeConfig, RegionBridgeForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(RegionBridgeConfig, RegionBridgeProcessor, exist_ok=True)
    register_pipelines()

__all__ = [
    "REGION_TOKEN",
    "DescribedRegionProcessor",
    "PictureContext",
    "RegionBaseline",
    "RegionBridgeConfig",
    "RegionBridgeForConditionalGeneration",
    "RegionBridgeOutput",
    "RegionBridgeProcessor",
    "RegionCaptioningPipeline",
    "RegionChat",
    "RegionDescription",
    "RegionProjector",
    "RegionTextGenerationPipeline",
    "add_lora",
    "count_parameters",
    "describe_regions",
    "find_adapter",
    "generate_text",
    "grid_points",
    "has_adapter",
    "load_adapter",
    "merge_lora",
    "number_regions",
    "region_features",
    "region_numbers",
    "remove_lora",
    "replace_regions",
    "set_trainable",
    "use_adapter",
]
