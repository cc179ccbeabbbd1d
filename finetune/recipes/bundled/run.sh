#!/usr/bin/env bash
# The bundled models from nothing: every command that makes them, in order. From the project's root:
#   bash finetune/recipes/bundled/run.sh                       # on a CPU, or on the one GPU that PyTorch sees
#   bash finetune/recipes/bundled/run.sh --num_processes 4     # on four GPUs: flags of `accelerate launch`
#   bash finetune/recipes/bundled/run.sh --nproc_per_node 2    # two processes on CPU cores: flags of torchrun
# Given again after a stop, it goes on: complete stages are passed over.
# OUT     folder of all that is made; default runs/bundled       PYTHON  default .venv/bin/python
# FLAGS   handed to every training command, as "--batch_size 2": several processes share a step's pictures only if told so
set -euo pipefail
OUT=${OUT:-runs/bundled}
. "$(dirname "$0")/../stages.sh"

train() { # train NAME COMMAND: what its recipe says, with OUT in place of the folder that the recipe names
  mkdir -p "$OUT/recipes" && sed "s#runs/bundled/#$OUT/#g" "$(dirname "$0")/$1.yaml" > "$OUT/recipes/$1.yaml"
  # shellcheck disable=SC2086  # FLAGS is several words
  stage "$OUT/$1/model" "${launch[@]}" "finetune.$2" --config "$OUT/recipes/$1.yaml" ${FLAGS:-}
}
records() { # records NAME FLAG …
  stage "$OUT/$1.jsonl" "$PYTHON" -m finetune.data convert glyph_scenes --output "$OUT/$1.jsonl" --all_regions true "${@:2}"
}
cache() { # cache NAME COMMAND FLAG …
  stage "$OUT/$1/manifest.json" "$PYTHON" -m "finetune.$2" --data "$OUT/$1.jsonl" --output "$OUT/$1" "${@:3}"
}

# tap-tiny, the region tokenizer: patches, prompts, then concepts and captions; in half precision, as the package holds it.
for name in tap_dense tap_prompt tap_heads; do train $name pretrain_tap; done
stage "$OUT/tap-tiny" "$PYTHON" -m tap_tokenizer convert "$OUT/tap_heads/model" "$OUT/tap-tiny" --dtype float16 \
  --limitation "tap-tiny knows only GlyphScenes, drawings of coloured glyphs: it misreads photographs."
mkdir -p "$OUT/tap-tiny/training"
for name in dense prompt heads; do sed "s/^{/{\"stage\": \"$name\", /" "$OUT/tap_$name/log.jsonl"; done \
  > "$OUT/tap-tiny/training/log.jsonl"

# Talks about encoded scenes, about invented ones, whose regions borrow their tokens, and which objects an expression means.
about=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,same_kind,larger,side
around=nearest,farthest,count_colour,count_colour,count_kind,count_kind
yes_or_no=statement,statement,same_colour,same_colour,same_kind,same_kind,side,side,larger
talk() { records "$1" --families $about --split train,train-packed,train-scaled "${@:2}"; }
invented() { talk "$1" --long_side 128 --ends_with $around "${@:2}" && cache "$1" compose_regions \
  --from_data "$OUT"/asked{,_freely}.jsonl --from_caches "$OUT"/asked{,_freely}; }
records val --split val --scenes 320 --turns 1 --families $about
records val_pointed --split val --seed 1 --scenes 100 --turns 2 --expressions 1
talk asked --seed 1 --scenes 2400 --turns 48
talk asked_freely --seed 2 --scenes 1200 --turns 32 --phrasings 1 --sentences 0.5
talk taught --seed 3 --scenes 300 --turns 1
for name in val val_pointed asked asked_freely; do cache $name cache_regions --region_tokenizer "$OUT/tap-tiny" \
  --variants exact,jitter --image_regions 24 --context_from annotated; done
invented made --seed 4 --scenes 15000
invented made_freely --seed 5 --scenes 6000 --phrasings 1 --sentences 0.5
invented pointed --seed 6 --scenes 6000 --expressions 1
invented compared --seed 7 --scenes 5400 --turns 12 --families $yes_or_no --ends_with ""
invented compared_freely --seed 8 --scenes 2000 --turns 12 --families $yes_or_no --ends_with "" --phrasings 1 --sentences 0.5
invented found --seed 9 --scenes 4000 --turns 8 --expressions 1 --shown_once true
invented looked_up --seed 10 --scenes 4000 --turns 12 --expressions 1 --lookups 1 --shown_once true

# The bridges: the small one, whose language model is made here, too, and the one on SmolLM2, whose `find` is calibrated.
train region_chat_tiny_lm pretrain_lm; train chat_tiny train; train chat_smollm2 distill; train chat_smollm2_more train
calibrate() { "$PYTHON" -m finetune.calibrate --model "${1%/*}/model" --data "$OUT/val_pointed.jsonl" \
  --cache "$OUT/val_pointed" | tee "$1.partial" && mv "$1.partial" "$1"; }
stage "$OUT/chat_smollm2_more/calibration.txt" calibrate "$OUT/chat_smollm2_more/calibration.txt"
