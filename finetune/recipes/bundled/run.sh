#!/usr/bin/env bash
# The bundled models from nothing: every command that makes them, in order. From the project's root:
#
#   bash finetune/recipes/bundled/run.sh                       # on a CPU, or on the one GPU that PyTorch sees
#   bash finetune/recipes/bundled/run.sh --num_processes 4     # flags are those of `accelerate launch`
#
# Given again after a stop, it goes on: a stage that is complete is passed over, and one that was stopped continues.
#
# OUT     folder of all that is made; default runs/bundled
# FLAGS   handed to every training command, e.g. FLAGS="--workers 8 --tracker tensorboard"; several processes share a step's
#         pictures only if told so: --batch_size 2 with four of them
# PYTHON  default .venv/bin/python
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
OUT=${OUT:-runs/bundled}
launch=("$PYTHON" -m)
if [ $# -gt 0 ]; then launch=("$PYTHON" -m accelerate.commands.launch "$@" -m); fi

stage() { # stage RESULT COMMAND …: run the command unless its result is there
  if [ -e "$1" ]; then echo "$1 is there"; else shift && "$@"; fi
}
tap() { # tap NAME [BEFORE]: a stage of the region tokenizer, from what another one left
  # shellcheck disable=SC2086  # FLAGS is several words
  stage "$OUT/$1/model" "${launch[@]}" finetune.pretrain_tap --config "bundled/$1" --output_dir "$OUT/$1" \
    ${2:+--init_from "$OUT/$2/model"} ${FLAGS:-}
}
logs() { # logs STAGE …: the logs of stages in one, each line with the name of its stage
  for name in "$@"; do sed "s/^{/{\"stage\": \"${name#tap_}\", /" "$OUT/$name/log.jsonl"; done
}

# tap-tiny, the region tokenizer: patches, prompts, then concepts and captions; in half precision, as the package holds it.
tap tap_dense
tap tap_prompt tap_dense
tap tap_heads tap_prompt
stage "$OUT/tap-tiny" "$PYTHON" -m tap_tokenizer convert "$OUT/tap_heads/model" "$OUT/tap-tiny" --dtype float16 \
  --limitation "tap-tiny knows only GlyphScenes, drawings of coloured glyphs: it misreads photographs."
mkdir -p "$OUT/tap-tiny/training"
logs tap_dense tap_prompt tap_heads > "$OUT/tap-tiny/training/log.jsonl"
