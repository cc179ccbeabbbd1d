#!/usr/bin/env bash
# Puts what run.sh has made into the package, in place of the bundled models (with GNU sed and install). From the project's root:
#   bash finetune/recipes/bundled/ship.sh
#   make evaluate-default    # metrics.json goes to training/ of tap-tiny and region-chat-smollm2, table.md into the latter's card
#   .venv/bin/python -m finetune.evaluate_glyphs --model region-chat-tiny --output runs/region-chat-tiny    # and for this one, too
#   make notebooks docs
# Cards, pictures and the demo's questions are written by hand, and stay.
# OUT  folder of what run.sh has made; default runs/bundled
set -euo pipefail
OUT=${OUT:-runs/bundled}

ship() { # ship FOLDER PLACE: every file but the card, and no other file of an earlier model
  mkdir -p "$2" && find "$2" -type f ! -name README.md ! -name demo.json ! -name '*.png' ! -path '*/training/*' -delete
  (cd "$1" && find . -type f ! -name README.md) | while read -r file; do install -D -m 644 "$1/$file" "$2/$file"; done
}
bridge() { # bridge NAME STAGE …: of the last stage, and the logs of all; it names its region tokenizer as the package does
  local place=llm_bridge/pretrained/$1 no="$1 knows only GlyphScenes, drawings of coloured glyphs: it misreads photographs."
  ship "$OUT/${!#}/model" "$place"
  sed -i 's#"source": "[^"]*"#"source": "tap-tiny"#' "$place/processor_config.json"
  sed -i "s#\"limitation\": null#\"limitation\": \"$no\"#" "$place/config.json"
  grep -q "$no" "$place/config.json"
  mkdir -p "$place/training"
  for stage in "${@:2}"; do sed "s/^{/{\"stage\": \"$stage\", /" "$OUT/$stage/log.jsonl"; done > "$place/training/log.jsonl"
}

ship "$OUT/tap-tiny" tap_tokenizer/pretrained/tap-tiny
bridge region-chat-tiny region_chat_tiny_lm chat_tiny
bridge region-chat-smollm2 chat_smollm2 chat_smollm2_more
