"""The bridge says: region tokens and text → text, by any causal language model.

Importing it registers the bridge with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .adapters import add_lora, count_parameters, merge_lora, set_trainable
from .chat import RegionBaseline, RegionChat
from .configuration_bridge import REGION_TOKEN, RegionBridgeConfig
from .description import RegionDescription, describe_regions
from .modeling_bridge import RegionBridgeForConditionalGeneration, RegionBridgeOutput
from .processing_bridge import RegionBridgeProcessor, grid_points, region_features
from .projector import RegionProjector

AutoConfig.register("region_bridge", RegionBridgeConfig, exist_ok=True)
AutoModelForImageTextToText.register(RegionBridgeConfig, RegionBridgeForConditionalGeneration, exist_ok=True)
AutoProcessor.register(RegionBridgeConfig, RegionBridgeProcessor, exist_ok=True)

__all__ = [
    "REGION_TOKEN",
    "RegionBaseline",
    "RegionBridgeConfig",
    "RegionBridgeForConditionalGeneration",
    "RegionBridgeOutput",
    "RegionBridgeProcessor",
    "RegionChat",
    "RegionDescription",
    "RegionProjector",
    "add_lora",
    "count_parameters",
    "describe_regions",
    "grid_points",
    "merge_lora",
    "region_features",
    "set_trainable",
]
