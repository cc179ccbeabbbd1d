"""The bridge says: region tokens and text → text, by any causal language model.

Importing it registers the bridge with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from .chat import RegionBaseline, RegionChat
from .configuration_bridge import REGION_TOKEN, RegionBridgeConfig
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
    "RegionProjector",
    "grid_points",
    "region_features",
]
