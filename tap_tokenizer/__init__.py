"""TAP sees: picture and prompts → `RegionTokens`.

A native, exact TAP (Tokenize Anything via Prompting, arXiv 2312.09128) for transformers. Importing it registers the
model with transformers' Auto classes.
"""

from .command_line import (
    add_output_flags,
    add_prompt_flags,
    check_new,
    check_not_read,
    check_picture_path,
    help_is_wanted,
    inputs_of,
    prompts_of,
    region_prompts,
    run_command,
    save_picture,
    tell_folder,
)
from .everything_options import EverythingOptions

if not help_is_wanted():
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

    from .concept_projector import ConceptBank
    from .configuration_tap import TapConfig, TapImageDecoderConfig, TapImageEncoderConfig, TapTextDecoderConfig
    from .coordinates import box_problems, point_problems
    from .everything import mask_to_rle
    from .image_processing_tap import ImageInput, TapImageProcessor, load_rgb, upright_size
    from .modeling_tap import TapModel, TapOutput
    from .picture_folders import PictureRegions, read_region_table, write_records
    from .pretrained_files import check_hub
    from .processing_tap import TapProcessor
    from .prompt_encoder import PointLabel
    from .region_tokenizer import ImageFeatures, TapRegionTokenizer
    from .region_tokens import RegionTokens
    from .restricted_pickle import read_pickle
    from .visualization import draw_regions, region_colour
    from .weight_files import check_device, damage_told

    AutoConfig.register("tap", TapConfig, exist_ok=True)
    AutoModel.register(TapConfig, TapModel, exist_ok=True)
    AutoImageProcessor.register(TapConfig, TapImageProcessor, exist_ok=True)
    AutoProcessor.register(TapConfig, TapProcessor, exist_ok=True)

__all__ = [
    "ConceptBank",
    "EverythingOptions",
    "ImageFeatures",
    "ImageInput",
    "PictureRegions",
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
    "add_output_flags",
    "add_prompt_flags",
    "box_problems",
    "check_device",
    "check_hub",
    "check_new",
    "check_not_read",
    "check_picture_path",
    "damage_told",
    "draw_regions",
    "help_is_wanted",
    "inputs_of",
    "load_rgb",
    "mask_to_rle",
    "point_problems",
    "prompts_of",
    "read_pickle",
    "read_region_table",
    "region_colour",
    "region_prompts",
    "run_command",
    "save_picture",
    "tell_folder",
    "upright_size",
    "write_records",
]
