"""What the server saves at the second click on a picture: encoding it. Requests of X-AnyLabeling's form, in one process.

    python benchmarks/server_clicks.py
    python benchmarks/server_clicks.py --shape tap_vit_b

A click is a request with the whole picture, which is read, encoded if it is new, and answered with a mask, a polygon, a label
and a caption. Without --shape, the bundled tokenizer answers; with it, random weights in the shape of the original's, whose
time does not depend on what they hold, and which have no labels and captions: the second click is then a mask and a polygon
alone.
"""

from __future__ import annotations

import argparse
import base64
import io
import statistics
import time
from typing import Any

import numpy as np
import torch
from machine import describe_machine
from PIL import Image
from starlette.testclient import TestClient

from llm_bridge import RegionChat
from llm_bridge.serving.limits import ServerLimits
from llm_bridge.serving.server import build_app
from tap_tokenizer import TapConfig, TapModel, TapRegionTokenizer


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tap_vit_b", "tap_vit_l", "tap_vit_h"), help="random weights of this shape")
    parser.add_argument("--pictures", type=int, default=5, help="pictures, each clicked on twice; the medians count")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(describe_machine())
    chat = RegionChat.from_pretrained("region-chat-tiny")
    if arguments.shape is not None:
        chat.processor.region_tokenizer = silent(arguments.shape)
    client = TestClient(build_app(chat, "model", limits=ServerLimits(seconds=36_000)), base_url="http://127.0.0.1:8000")
    warm = picture(999)
    click(client, warm)
    first, second = [], []
    for seed in range(arguments.pictures):
        address = picture(seed)
        first.append(click(client, address))
        second.append(click(client, address))
    tokenizer = chat.region_tokenizer
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(warm.partition(",")[2]))).convert("RGB"))
    encode = statistics.median(seconds(lambda: tokenizer.embed_image(pixels)) for _ in range(arguments.pictures))
    features = tokenizer.embed_image(pixels)
    prompt = statistics.median(
        seconds(lambda: tokenizer.encode(features=features, boxes=[[90, 90, 300, 250]])) for _ in range(3)
    )
    print(f"\n{arguments.shape or 'tap-tiny'}, pictures of 512 × 384, CPU time of this process\n")
    print("| | ms | share |\n|---|---|---|")
    one, two = statistics.median(first), statistics.median(second)
    print(f"| encoding a picture | {1e3 * encode:.1f} | 1 |")
    print(f"| a prompt on an encoded picture | {1e3 * prompt:.1f} | {prompt / encode:.3f} |")
    print(f"| first click on a picture | {1e3 * one:.1f} | 1 |")
    print(f"| second click | {1e3 * two:.1f} | {two / one:.3f} |")


def silent(shape: str) -> TapRegionTokenizer:
    """A region tokenizer of random weights, without concepts, whose captions are no words."""
    tokenizer = TapRegionTokenizer(TapModel(getattr(TapConfig, shape)()).eval())
    tokenizer.text_tokenizer = NoWords()
    tokenizer.caption = lambda regions, **options: ["" for _ in range(len(regions))]  # type: ignore[method-assign]
    return tokenizer


class NoWords:
    """Stands where a caption vocabulary would."""


def picture(seed: int) -> str:
    """Another picture for each seed, as a data URL."""
    file = io.BytesIO()
    small = np.random.RandomState(seed).randint(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def click(client: TestClient, address: str) -> float:
    """Seconds of CPU of one request."""
    mark = {"type": "rectangle", "data": [90, 90, 300, 250]}
    body = {"model": "model", "image": address, "params": {"marks": [mark]}}

    def ask() -> Any:
        answer = client.post("/v1/predict", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    return seconds(ask)


def seconds(work: Any) -> float:
    """Seconds of CPU that a call takes in all threads of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    main()
