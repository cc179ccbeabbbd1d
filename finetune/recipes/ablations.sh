#!/usr/bin/env bash
# The rows of the table of ablations in finetune/README.md, from the project's root; a row that is there is passed over.
#
#   bash finetune/recipes/ablations.sh
#
# About 35 minutes on one CPU core, and before it ten of drawing and caching. Each row begins with a fresh projector on the language model of the bundled bridge.
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}

stage() { # stage FOLDER COMMAND …: run the command unless the folder is there
  if [ -e "$1" ]; then echo "$1 is there"; else shift && "$@"; fi
}
records() { # records NAME FLAG …
  local name=$1 && shift
  stage "runs/records/$name.jsonl" "$PYTHON" -m finetune.data convert glyph_scenes "$@" --output "runs/records/$name.jsonl"
}
cache() { # cache NAME FLAG …
  local name=$1 folder=runs/caches/$1 && shift
  stage "$folder/manifest.json" "$PYTHON" -m finetune.cache_regions --data "runs/records/$name.jsonl" --output "$folder" "$@"
}
row() { # row NAME FLAG …
  local folder=runs/ablations/$1 && shift
  stage "$folder/model" "$PYTHON" -m finetune.train --config ablation --output_dir "$folder" "$@"
}

records ablation --split train --seed 11 --scenes 800 --turns 24
records ablation_val --split val --seed 11 --scenes 400 --turns 8
for name in ablation ablation_val; do
  cache $name --image_grid 4
done
stage runs/ablations/language_model "$PYTHON" -c "
from llm_bridge import RegionChat
chat = RegionChat.from_pretrained('region-chat-tiny')
for part in (chat.model.language_model, chat.processor.tokenizer):
    part.save_pretrained('runs/ablations/language_model')"
row full
row all_experts --experts all
row no_semantic_embeds --use_semantic_embeds false
row no_position --use_position false
row grid_4 --image_grid 4
row projector --mode projector
row lora_4 --mode lora --lora_r 4 --lora_alpha 8
row lora_16 --mode lora --lora_r 16 --lora_alpha 32
row lora_64 --mode lora --lora_r 64 --lora_alpha 128
