"""TAP sees: picture and prompts → `RegionTokens`.

A native, exact TAP (Tokenize Anything via Prompting, arXiv 2312.09128) for transformers. Importing it registers the
model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from .concept_projector import ConceptBank
from .configuration_tap import TapConfig, TapImageDecoderConfig, TapImageEncoderConfig, TapTextDecoderConfig
from .everything import EverythingOptions, mask_to_rle
from .image_processing_tap import ImageInput, TapImageProcessor, load_rgb
from .modeling_tap import TapModel, TapOutput
from .processing_tap import TapProcessor
from .prompt_encoder import PointLabel
from .region_tokenizer import ImageFeatures, TapRegionTokenizer
from .region_tokens import RegionTokens
from .restricted_pickle import read_pickle
from .visualization import draw_regions, region_colour

AutoConfig.register("tap", TapConfig, exist_ok=True)
AutoModel.register(TapConfig, TapModel, exist_ok=True)
AutoImageProcessor.register(TapConfig, TapImageProcessor, exist_ok=True)
AutoProcessor.register(TapConfig, TapProcessor, exist_ok=True)

__all__ = [
    "ConceptBank",
    "EverythingOptions",
    "ImageFeatures",
    "ImageInput",
    "PointLabel",
    "RegionTokens",
    "TapConfig",
    "TapImageDecoderConfig",
    "TapImageEncoderConfig",
    "TapImageProcessor",
    "TapModel",
    "TapOutput",
    "TapProcessor",
    "TapRegionTokenizer",
    "TapTextDecoderConfig",
    "draw_regions",
    "load_rgb",
    "mask_to_rle",
    "read_pickle",
    "region_colour",
]
