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
    tell_limitation,
)
from .everything_options import EverythingOptions

if not help_is_wanted():
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # by name it needs torchvision

    from .bundled import add_bundled, bundled_or_given
    from .concept_projector import ConceptBank
    from .configuration_tap import TapConfig, TapImageDecoderConfig, TapImageEncoderConfig, TapTextDecoderConfig
    from .coordinates import box_problems, point_problems
    from .everything import mask_to_rle
    from .foreign_files import (
        check_config,
        check_folder,
        check_model_size,
        check_regular_file,
        check_source,
        load_pretrained,
        misfits_told,
        model_from_config,
        read_json_object,
    )
    from .image_processing_tap import ImageInput, TapImageProcessor, load_rgb, open_image, upright_size
    from .masks import as_mask
    from .modeling_tap import TapModel, TapOutput
    from .output_files import only_writer, write_whole
    from .picture_folders import PictureRegions, read_region_table, write_records
    from .pretrained_files import check_findable, check_hub, take_bundled_names
    from .processing_tap import TapProcessor
    from .prompt_encoder import PointLabel
    from .prompts import RegionPrompt, prompts_in_picture
    from .region_tokenizer import ImageFeatures, TapRegionTokenizer
    from .region_tokens import RegionTokens
    from .restricted_pickle import read_pickle
    from .trial import check_chat_template, check_patterns
    from .visualization import draw_regions, region_colour
    from .weight_files import check_device, check_weights, damage_told, weight_shapes

    AutoConfig.register("tap", TapConfig, exist_ok=True)
    AutoModel.register(TapConfig, TapModel, exist_ok=True)
    AutoImageProcessor.register(TapConfig, TapImageProcessor, exist_ok=True)
    AutoProcessor.register(TapConfig, TapProcessor, exist_ok=True)

    take_bundled_names(AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
                       AutoTokenizer, AutoImageProcessor, AutoVideoProcessor, AutoFeatureExtractor)  # fmt: skip
    take_bundled_names(TapConfig, TapImageProcessor, TapModel, TapProcessor, checked=True)

__all__ = [
    "ConceptBank",
    "EverythingOptions",
    "ImageFeatures",
    "ImageInput",
    "PictureRegions",
    "PointLabel",
    "RegionPrompt",
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
    "add_bundled",
    "add_output_flags",
    "add_prompt_flags",
    "as_mask",
    "box_problems",
    "bundled_or_given",
    "check_chat_template",
    "check_config",
    "check_device",
    "check_findable",
    "check_folder",
    "check_hub",
    "check_model_size",
    "check_new",
    "check_not_read",
    "check_patterns",
    "check_picture_path",
    "check_regular_file",
    "check_source",
    "check_weights",
    "damage_told",
    "draw_regions",
    "help_is_wanted",
    "inputs_of",
    "load_pretrained",
    "load_rgb",
    "mask_to_rle",
    "misfits_told",
    "model_from_config",
    "only_writer",
    "open_image",
    "point_problems",
    "prompts_in_picture",
    "prompts_of",
    "read_json_object",
    "read_pickle",
    "read_region_table",
    "region_colour",
    "region_prompts",
    "run_command",
    "save_picture",
    "take_bundled_names",
    "tell_folder",
    "tell_limitation",
    "upright_size",
    "weight_shapes",
    "write_records",
    "write_whole",
]
