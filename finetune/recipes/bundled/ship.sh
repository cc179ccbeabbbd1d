#!/usr/bin/env bash
# Puts what run.sh has made into the package, in place of the bundled models. From the project's root:
#   bash finetune/recipes/bundled/ship.sh
#   make evaluate-default                                          # then copy runs/evaluate-default/metrics.json to
#   make notebooks docs                                            # region-chat-smollm2/training, and table.md into its card
# Cards, pictures and the demo's questions are written by hand, and stay.
# OUT  folder of what run.sh has made; default runs/bundled
set -euo pipefail
OUT=${OUT:-runs/bundled}

ship() { # ship FOLDER PLACE: every file but the card
  (cd "$1" && find . -type f ! -name README.md) | while read -r file; do install -D -m 644 "$1/$file" "$2/$file"; done
}
bridge() { # bridge STAGE NAME: a bridge that names its region tokenizer as the package does and what it cannot do, and its log
  local place=llm_bridge/pretrained/$2
  ship "$OUT/$1/model" "$place"
  sed -i 's#"source": "[^"]*"#"source": "tap-tiny"#' "$place/processor_config.json"
  sed -i "s#\"limitation\": null#\"limitation\": \"$2 knows only GlyphScenes, drawings of coloured glyphs: it misreads photographs.\"#" \
    "$place/config.json"
  mkdir -p "$place/training"
  sed "s/^{/{\"stage\": \"$1\", /" "$OUT/$1/log.jsonl" > "$place/training/log.jsonl"
}

ship "$OUT/tap-tiny" tap_tokenizer/pretrained/tap-tiny
bridge chat_tiny region-chat-tiny
bridge chat_smollm2 region-chat-smollm2
