#!/usr/bin/env bash
# What a bridge from pictures alone learns, on GlyphScenes, with tap-tiny and SmolLM2. From the project's root:
#   bash finetune/recipes/pictures_alone/run.sh                                  # on a CPU, or on the one GPU that PyTorch sees
#   FLAGS="--gradient_accumulation_steps 1" bash finetune/recipes/pictures_alone/run.sh --nproc_per_node 2     # on two CPU cores
#   ROWS="both-0 projector-1" bash finetune/recipes/pictures_alone/run.sh        # some rows alone, each NAME-SEED
# Given again after a stop, it goes on. Every row but `alone` learns from the same lessons, which the first one makes:
#   both        the projector and LoRA, as `finetune.distill` does by default
#   projector   the projector; the language model stays as it is
#   adapter     LoRA, which reads through a projector that stays as it was drawn
#   after       both, then 300 steps on questions with answers
#   alone       these 300 steps alone, on the same questions in the same order
# OUT     folder of all that is made; default runs/pictures_alone
# FLAGS   handed to every training command
set -euo pipefail
OUT=${OUT:-runs/pictures_alone}
ROWS=${ROWS:-both-0 after-0 alone-0 projector-0 adapter-0 projector-1 projector-2}
. "$(dirname "$0")/../stages.sh"

records() { # records NAME FLAG …
  stage "$OUT/$1.jsonl" "$PYTHON" -m finetune.data convert glyph_scenes --output "$OUT/$1.jsonl" --all_regions true \
    --split train,train-packed,train-scaled "${@:2}"
}
train() { # train ROW COMMAND RECIPE FLAG …
  # shellcheck disable=SC2086  # FLAGS is several words
  stage "$OUT/$1/model" "${launch[@]}" "finetune.$2" --config "pictures_alone/$3" --output_dir "$OUT/$1" --seed "${1##*-}" \
    "${@:4}" ${FLAGS:-}
}
distilled() { # distilled ROW FLAG …
  train "$1" distill distill --data "$OUT/pictures.jsonl" --lessons "$OUT/lessons" "${@:2}"
}
supervised() { # supervised ROW FLAG …
  records asked --seed 22 --scenes 600 --turns 12 --families kind,colour,size,place,caption,statement,same_colour,same_kind,larger,side
  stage "$OUT/asked/manifest.json" "$PYTHON" -m finetune.cache_regions --data "$OUT/asked.jsonl" --output "$OUT/asked" \
    --variants exact,jitter
  train "$1" train supervised --data "$OUT/asked.jsonl" --caches "$OUT/asked" --turns 2 "${@:2}"
}
measure() { # measure NAME FLAG …: on scenes of two seeds
  stage "$OUT/measured/$1/table.md" "$PYTHON" -m finetune.evaluate_glyphs --output "$OUT/measured/$1" --splits test --seeds 0,1 \
    --scenes 12 --question_scenes 12 --free_scenes 12 --shuffled_scenes 0 "${@:2}"
}

mkdir -p "$OUT"
records pictures --seed 21 --scenes 900 --turns 1
for row in $ROWS; do
  case ${row%-*} in
    both) distilled "$row" ;;
    projector) distilled "$row" --mode projector ;;
    adapter) distilled "$row" --projector_learning_rate 0 ;;
    after) distilled "both-${row##*-}"; supervised "$row" --init_from "$OUT/both-${row##*-}/model" ;;
    alone) supervised "$row" --language_model smollm2-135m ;;
    *) echo "ROWS has $row, expected both, projector, adapter, after or alone, and a seed: both-0" >&2 && exit 2 ;;
  esac
  measure "$row" --model "$OUT/$row/model" --described_model none --control_scenes 0
done
measure described --model none --described_model smollm2-135m --control_scenes 12 # the teacher: told in words, and taught nothing
"$PYTHON" -m finetune.recipes.pictures_alone.table "$OUT"
