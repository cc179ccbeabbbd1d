"""TAP's labels of boxes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("datasets")

from finetune.tasks.classification import tap_detections


def test_labels_of_boxes_by_taps_protocol() -> None:
    probabilities = np.array([[0.64, 0.3, 0.0005], [0.49, 0.0, 0.5], [0.04, 0.0, 0.9]])
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], dtype=float)
    found = tap_detections(probabilities, np.array([1.0, 1.0, 4.0]), boxes)
    assert [(region, label) for region, label, _ in found] == [(2, 2), (0, 0), (1, 2), (0, 1), (2, 0)]
    # (1, 0) overlaps the surer (0, 0) by 9/11; .0005 is below .001; an IoU score of 4 counts as 1
    assert [score for *_, score in found] == pytest.approx([0.9**0.5, 0.8, 0.5**0.5, 0.3**0.5, 0.2])
    assert tap_detections(probabilities, np.ones(3), boxes, top=2) == found[:2]
    assert tap_detections(np.zeros((0, 3)), np.zeros(0), np.zeros((0, 4))) == []
