"""TAP sees: picture and prompts → `RegionTokens`.

A native, exact TAP (Tokenize Anything via Prompting, arXiv 2312.09128) for transformers. Its model is registered with
transformers' Auto classes as soon as both packages are imported, in whatever order.
"""

from typing import TYPE_CHECKING

from .lazy_imports import lazy_names, once_transformers_is_there

if TYPE_CHECKING:  # exported: each name is loaded when it is first asked for
    from .browser_page import export_browser_page
    from .coco_files import CocoDetections
    from .coco_masks import mask_to_rle
    from .concept_projector import ConceptBank
    from .configuration_tap import TapConfig, TapImageDecoderConfig, TapImageEncoderConfig, TapTextDecoderConfig
    from .contact_sheet import draw_hits
    from .everything_options import EverythingOptions
    from .folder_index import IndexReport, index_folder
    from .image_processing_tap import ImageInput, TapImageProcessor, load_rgb
    from .masks import as_mask
    from .modeling_tap import TapModel, TapOutput
    from .onnx_export import export_onnx
    from .processing_tap import TapProcessor
    from .prompt_encoder import PointLabel
    from .prompts import RegionPrompt
    from .region_decoder import ImageFeatures
    from .region_index import IndexedPicture, RegionHit, RegionIndex
    from .region_tokenizer import TapRegionTokenizer
    from .region_tokens import RegionTokens
    from .text_encoder import TextEncoder
    from .visualization import draw_regions, region_colour
if TYPE_CHECKING:  # shared with llm_bridge and finetune, and promised to nobody
    from .browser_page import MARKING_SCRIPT
    from .bundled import PackagedModel, add_bundled, add_packaged, bundled_or_given, install_command, is_here
    from .cluster import RAY_ADDRESS_HELP, RAY_HELP, check_ray_flags, cluster_for, ray_cluster, run_chunks
    from .coco_masks import coco_shape
    from .coordinates import box_problems, point_problems
    from .counts import counted
    from .cpu_abilities import in_fast_dtype
    from .detections import detection_prompts
    from .flags import (
        EXIT_CODES,
        FOLDER_CODES,
        CommandParser,
        add_command,
        add_output_flags,
        add_prompt_flags,
        check_folder_of_pictures,
        check_new,
        check_not_read,
        check_one_picture,
        check_picture_path,
        inputs_of,
        prompts_of,
        region_prompts,
        run_command,
        save_picture,
        tell_folder,
        tell_limitation,
    )
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
        unpacked_gguf,
    )
    from .gguf_files import gguf_of
    from .image_processing_tap import open_image, upright_size
    from .interruption import before_step, interruptible
    from .mask_boxes import box_of_mask
    from .output_files import only_writer, write_whole
    from .picture_folders import PictureRegions, pictures_of, read_region_table, table_rows, write_records
    from .pretrained_files import check_findable, take_bundled_names
    from .processing_tap import box_and_points
    from .prompts import prompts_in_picture
    from .restricted_pickle import read_pickle
    from .trial import check_chat_template, check_patterns
    from .weight_files import check_device, check_weights, damage_told, weight_shapes
if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, __file__)

__all__ = [
    "CocoDetections",
    "ConceptBank",
    "EverythingOptions",
    "ImageFeatures",
    "ImageInput",
    "IndexReport",
    "IndexedPicture",
    "PointLabel",
    "RegionHit",
    "RegionIndex",
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
    "TextEncoder",
    "as_mask",
    "draw_hits",
    "draw_regions",
    "export_browser_page",
    "export_onnx",
    "index_folder",
    "load_rgb",
    "mask_to_rle",
    "region_colour",
]


def _register() -> None:
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

    from .configuration_tap import TapConfig
    from .image_processing_tap import TapImageProcessor
    from .modeling_tap import TapModel
    from .pretrained_files import take_bundled_names
    from .processing_tap import TapProcessor

    AutoConfig.register("tap", TapConfig, exist_ok=True)
    AutoModel.register(TapConfig, TapModel, exist_ok=True)
    AutoImageProcessor.register(TapConfig, TapImageProcessor, exist_ok=True)
    AutoProcessor.register(TapConfig, TapProcessor, exist_ok=True)

    take_bundled_names(AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor,
                       AutoTokenizer, AutoImageProcessor, AutoVideoProcessor, AutoFeatureExtractor)  # fmt: skip
    take_bundled_names(TapConfig, TapImageProcessor, TapModel, TapProcessor, checked=True)


once_transformers_is_there(__name__, _register)
