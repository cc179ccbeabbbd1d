#!/usr/bin/env bash
# The rows of the table of ablations in finetune/README.md, from the project's root; a row that is there is passed over.
#
#   bash finetune/recipes/ablations/run.sh        # SEEDS=0 for one seed of every row
#
# On one CPU core: most of an hour of drawing, caching and pretraining, then two to three minutes a row and seed. Each row begins with a
# fresh projector on the language model of the bundled bridge; those about the language model's size, on one that knows words alone.
set -euo pipefail
SEEDS=${SEEDS:-0 1 2}
. "$(dirname "$0")/../stages.sh"

records() { # records NAME FLAG …
  local name=$1 && shift
  stage "runs/records/$name.jsonl" "$PYTHON" -m finetune.data convert glyph_scenes "$@" --output "runs/records/$name.jsonl"
}
caches() { # caches SUFFIX FLAG …: of the records of both splits
  local suffix=$1 name && shift
  for name in ablation ablation_val; do
    stage "runs/caches/$name$suffix/manifest.json" "$PYTHON" -m finetune.cache_regions --data "runs/records/$name.jsonl" \
      --output "runs/caches/$name$suffix" "$@"
  done
}
row() { # row NAME FLAG …
  local folder=runs/ablations/$1-$seed && shift
  stage "$folder/model" "$PYTHON" -m finetune.train --config ablation --seed "$seed" --output_dir "$folder" "$@"
}

records ablation --split train --seed 11 --scenes 800 --turns 24
records ablation_val --split val --seed 11 --scenes 400 --turns 8
caches "" --image_grid 4
caches _grid_8 --image_grid 8
# TAP goes on with all its losses for 150 steps, and the projector reads what it says then.
stage runs/ablations/tap/model "$PYTHON" -m finetune.pretrain_tap --stage prompt --init_from tap-tiny --steps 150 \
  --splits train,train-packed --seed 1 --batch_size 4 --regions_per_picture 6 --optimizer muon --muon_learning_rate 5e-3 \
  --dice_weight 5 --dense_weight 0.5 --decay_fraction 0.6 --eval_steps 150 --eval_scenes 48 --output_dir runs/ablations/tap
caches _tap --region_tokenizer runs/ablations/tap/model
stage runs/ablations/language_model "$PYTHON" -c "
from llm_bridge import RegionChat
chat = RegionChat.from_pretrained('region-chat-tiny')
for part in (chat.model.language_model, chat.processor.tokenizer):
    part.save_pretrained('runs/ablations/language_model')"
for size in ablation_small region_chat_tiny; do # 0.9 and 2.8 M parameters, 200 steps on words alone
  stage runs/ablations/${size}_lm/model "$PYTHON" -m finetune.pretrain_lm --config bundled/region_chat_tiny_lm --steps 200 --batch_size 8 \
    --turns 8 --model_config ${size}_lm.json --output_dir runs/ablations/${size}_lm
done

for seed in $SEEDS; do
  row full
  row all_experts --experts all
  row no_semantic_embeds --use_semantic_embeds false
  row no_position --use_position false
  row grid_4 --image_grid 4
  row grid_8 --image_grid 8 --caches runs/caches/ablation_grid_8 --eval_cache runs/caches/ablation_val_grid_8
  row projector --mode projector
  row lora_4 --mode lora --lora_r 4 --lora_alpha 8
  row lora_16 --mode lora --lora_r 16 --lora_alpha 32
  row lora_64 --mode lora --lora_r 64 --lora_alpha 128
  row tuned_tap --region_tokenizer runs/ablations/tap/model --caches runs/caches/ablation_tap \
    --eval_cache runs/caches/ablation_val_tap
  for size in ablation_small region_chat_tiny; do
    row ${size}_lm --language_model runs/ablations/${size}_lm/model
  done
done
