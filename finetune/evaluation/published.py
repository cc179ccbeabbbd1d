"""Published figures that stand beside ours, each with the protocol it belongs to and where it was read.

Only figures of the same protocol as the benchmark's; scores as shares, as ours are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One system's figures and their source."""

    system: str
    scores: dict[str, float]
    source: str


def _captions(system: str, meteor: float, cider: float, source: str, **more: float) -> Published:
    return Published(
        system, {"METEOR": meteor, "CIDEr": cider, **{k.replace("_", "-"): v for k, v in more.items()}}, source
    )


_TAP = "notebooks of baaivision/tokenize-anything"
_SCA = "docs/MODEL_ZOO.md of xk-huang/segment-caption-anything"
_GLAMM = "docs of mbzuai-oryx/groundingLMM"
_CONTROLCAP = "table of callsys/ControlCap"
_OSPREY = "table 2 of CircleRadon/Osprey"


def _osprey(system: str, similarity: float, iou: float) -> Published:
    return Published(system, {"SS (osprey)": similarity, "S-IoU (osprey)": iou}, _OSPREY)


def _ap(system: str, values: tuple[float, ...], names: str, source: str = _TAP) -> Published:
    return Published(system, dict(zip(names.split(), values)), source)


PUBLISHED: dict[str, list[Published]] = {
    "vg_full": [
        _captions("GRiT", 0.171, 1.420, "table 6 of CircleRadon/Osprey"),
        _captions("SCA (LLaMA-3B); raw Visual Genome text", 0.174, 1.498, _SCA),
        _captions("TAP-L v1.0", 0.1750, 1.5070, _TAP, BLEU_4=0.1199, ROUGE_L=0.3566),
        _captions("TAP-B v1.1", 0.1771, 1.5235, _TAP, BLEU_4=0.1223, ROUGE_L=0.3595),
        _captions("TAP-L v1.1", 0.1787, 1.5471, _TAP, BLEU_4=0.1240, ROUGE_L=0.3624),
        _captions("TAP-H v1.1", 0.1780, 1.5424, _TAP, BLEU_4=0.1238, ROUGE_L=0.3620),
    ],
    "vg_glamm": [
        _captions("GLaMM-7B, fine-tuned", 0.197, 1.805, _GLAMM + "; ControlCap's table has .186 / 1.578"),
        _captions("Alpha-CLIP + LLaVA-7B", 0.189, 1.603, _CONTROLCAP),
        _captions("ControlCap", 0.204, 1.819, _CONTROLCAP),
    ],
    "refcocog": [
        _captions("Kosmos-2", 0.141, 0.623, "table 6 of CircleRadon/Osprey"),
        _captions("GRiT", 0.152, 0.716, "table 6 of CircleRadon/Osprey"),
        _captions("GLaMM-7B, fine-tuned", 0.162, 1.060, _GLAMM + "; other tables have 1.050"),
        _captions("Osprey-7B, fine-tuned", 0.166, 1.083, "table 6 of CircleRadon/Osprey"),
        _captions("ControlCap", 0.170, 1.114, _CONTROLCAP),
    ],
    "lvis_labels": [
        _osprey("LLaVA-1.5 on the crop", 0.4895, 0.1981),
        _osprey("Kosmos-2", 0.3895, 0.0867),
        _osprey("GPT4RoI-7B", 0.5132, 0.1199),
        _osprey("Ferret-7B", 0.6378, 0.3657),
        _osprey("Osprey-7B", 0.6524, 0.3819),
    ],
    "paco_labels": [
        _osprey("LLaVA-1.5 on the crop", 0.4220, 0.1456),
        _osprey("Kosmos-2", 0.3209, 0.0479),
        _osprey("GPT4RoI-7B", 0.4804, 0.1208),
        _osprey("Ferret-7B", 0.5868, 0.2596),
        _osprey("Osprey-7B", 0.7306, 0.5272),
    ],
    "lvis_classification": [
        _ap("TAP-B v1.1", (0.574, 0.586, 0.568, 0.575), "AP APr APc APf"),
        _ap("TAP-L v1.1", (0.591, 0.617, 0.589, 0.583), "AP APr APc APf"),
        _ap("TAP-H v1.1", (0.596, 0.616, 0.600, 0.582), "AP APr APc APf"),
    ],
    "coco_masks": [
        _ap("TAP-B v1.1, ViTDet-H boxes", (0.451,), "AP"),
        _ap("TAP-L v1.1, ViTDet-H boxes", (0.460,), "AP"),
        _ap("TAP-H v1.1, ViTDet-H boxes", (0.463,), "AP"),
    ],
    "lvis_masks": [
        _ap("TAP-B v1.1, ViTDet-H boxes", (0.422, 0.336, 0.431, 0.450), "AP APr APc APf"),
        _ap("TAP-L v1.1, ViTDet-H boxes", (0.430, 0.337, 0.441, 0.460), "AP APr APc APf"),
        _ap("TAP-H v1.1, ViTDet-H boxes", (0.432, 0.337, 0.441, 0.463), "AP APr APc APf"),
    ],
    "gar_bench": [
        Published("GAR-1B", {"accuracy": 0.479}, "reference outputs of Haochen-Wang409/Grasp-Any-Region; its paper has .506"),
        Published("GAR-8B", {"accuracy": 0.578}, "reference outputs of Haochen-Wang409/Grasp-Any-Region; its paper has .599"),
    ],
    "gar_bench_cap_simple": [
        Published("GAR-1B", {"accuracy": 0.557}, "reference outputs of Haochen-Wang409/Grasp-Any-Region"),
        Published("GAR-8B", {"accuracy": 0.639}, "reference outputs of Haochen-Wang409/Grasp-Any-Region"),
    ],
    "gar_bench_cap_detailed": [
        Published("GAR-1B", {"accuracy": 0.664}, "reference outputs of Haochen-Wang409/Grasp-Any-Region"),
        Published("GAR-8B", {"accuracy": 0.692}, "reference outputs of Haochen-Wang409/Grasp-Any-Region"),
    ],
    "paradlc_bench": [
        Published("GAR-8B", {"average": 0.695}, "README of MSALab-PKU/PerceptionDLM"),
        Published("LLaDA-V-8B", {"average": 0.352}, "README of MSALab-PKU/PerceptionDLM"),
        Published("PerceptionDLM-8B", {"average": 0.624}, "README of MSALab-PKU/PerceptionDLM"),
    ],
    "pope": [
        Published("Osprey-7B, random", {"F1": 0.8897}, "CircleRadon/Osprey"),
        Published("Osprey-7B, popular", {"F1": 0.8750}, "CircleRadon/Osprey"),
        Published("Osprey-7B, adversarial", {"F1": 0.8531}, "CircleRadon/Osprey"),
    ],
    "dlc_bench": [
        Published("DAM-3B", {"positive": 0.510, "negative": 0.830, "average": 0.670}, "NVlabs/describe-anything"),
        Published("GAR-1B", {"positive": 0.489, "negative": 0.870, "average": 0.679}, "Haochen-Wang409/Grasp-Any-Region"),
        Published("GAR-8B", {"positive": 0.502, "negative": 0.846, "average": 0.674}, "Haochen-Wang409/Grasp-Any-Region"),
    ],
}  # fmt: skip
"""By benchmark."""
