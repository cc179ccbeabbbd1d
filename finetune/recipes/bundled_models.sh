#!/usr/bin/env bash
# The bundled models from nothing: every command that made tap-tiny, region-chat-tiny and region-context-tiny, in order, from the
# project's root.
#
#   bash finetune/recipes/bundled_models.sh            # all stages; a stage that is through is passed over
#
# Each stage goes on where it was when the script is given again after a stop. About twenty-one hours on two CPU cores.
# FLAGS is handed to TAP's own stages, e.g. FLAGS="--mixed_precision bf16" or "--compile_encoder true" (needs a C++ compiler).
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}

stage() { # stage FOLDER COMMAND …: run the command unless the folder is there
  if [ -e "$1" ]; then echo "$1 is there"; else shift && "$@"; fi
}
tap() { stage "runs/$1/model" "$PYTHON" -m finetune.pretrain_tap --config "$1" ${FLAGS:-}; }
bridge() { # bridge FOLDER RECIPE FLAG …
  local folder=$1 && shift
  stage "runs/$folder/model" "$PYTHON" -m finetune.train --config "$@"
}
records() { # records NAME FLAG …
  local name=$1 && shift
  stage "runs/records/$name.jsonl" "$PYTHON" -m finetune.data convert glyph_scenes "$@" --output "runs/records/$name.jsonl"
}
cache() { # cache NAME TOKENIZER FLAG …
  local name=$1 tokenizer=$2 && shift 2
  stage "runs/caches/$name/manifest.json" "$PYTHON" -m finetune.cache_regions --data "runs/records/${name%@*}.jsonl" \
    --region_tokenizer "$tokenizer" --output "runs/caches/$name" "$@"
}
compose() { # compose NAME: the cache of made-up records
  stage "runs/caches/$1@settled/manifest.json" "$PYTHON" -m finetune.compose_regions --data "runs/records/$1.jsonl" \
    --from_data runs/records/more_{packed,scaled,train}.jsonl --from_caches runs/caches/more_{packed,scaled,train}@settled \
    --output "runs/caches/$1@settled" --shard_size 256
}
half() { # half FROM TO: the same region tokenizer in float16
  stage "$2" "$PYTHON" -c "
from finetune.checkpoints import save_whole
from pathlib import Path
from tap_tokenizer import TapRegionTokenizer as T
save_whole(Path('$2'), T.from_pretrained('$1', dtype='float16').save_pretrained)"
}
adopt() { # adopt FROM TOKENIZER TO: a bridge that reads another region tokenizer's tokens, its weights as they are
  stage "$3" "$PYTHON" -c "
from finetune.checkpoints import save_whole
from pathlib import Path
from llm_bridge import RegionBridgeForConditionalGeneration as Bridge, RegionBridgeProcessor as Processor
from tap_tokenizer import TapRegionTokenizer
tokenizer = TapRegionTokenizer.from_pretrained('$2')
bridge, words = Bridge.from_pretrained('$1'), Processor.from_pretrained('$1', region_tokenizer=tokenizer).tokenizer
bridge.config.fingerprint = tokenizer.fingerprint
parts = bridge, Processor.for_bridge(bridge.config, tokenizer=words, region_tokenizer=tokenizer)
save_whole(Path('$3'), lambda folder: [part.save_pretrained(folder) for part in parts])"
}

mixed() { # mixed BEFORE SHARE AFTER: Python that gives one module a share of the weights of another
  echo "
before = $1.state_dict()
for name, weight in $3.named_parameters():
    weight.data.copy_($2 * before[name].double() + (1 - $2) * weight.double())"
}
mix() { # mix BEFORE SHARE AFTER TO: a bridge whose weights are those of another with a share of what they were before
  stage "$4" "$PYTHON" -c "
from finetune.checkpoints import save_whole
from pathlib import Path
from llm_bridge import RegionBridgeForConditionalGeneration as Bridge, RegionBridgeProcessor as Processor
bridge = Bridge.from_pretrained('$3')
$(mixed "Bridge.from_pretrained('$1')" "$2" bridge)
parts = bridge, Processor.from_pretrained('$3')
save_whole(Path('$4'), lambda folder: [part.save_pretrained(folder) for part in parts])"
}

mix_tap() { # mix_tap BEFORE SHARE AFTER TO: the same of a region tokenizer
  stage "$4" "$PYTHON" -c "
from finetune.checkpoints import save_whole
from pathlib import Path
from tap_tokenizer import TapRegionTokenizer as T
tokenizer = T.from_pretrained('$3')
$(mixed "T.from_pretrained('$1').model" "$2" tokenizer.model)
save_whole(Path('$4'), tokenizer.save_pretrained)"
}

# The region tokenizer.
tap tap_tiny_dense
tap tap_tiny_prompt
tap tap_tiny_masks
tap tap_tiny_caption
half runs/tap_tiny_prompt/model runs/tap_tiny_first
half runs/tap_tiny_caption/model runs/tap_tiny

# The bridge learns to read tokens of the region tokenizer as it is after its second stage.
first=kind,colour,size,place,place,caption,caption_place,caption_place,statement,same_colour,same_kind,larger,side,side
records train24 --split train --scenes 4000 --turns 24 --families "$first"
records val --split val --scenes 128 --turns 8 --families "$first"
cache train24 runs/tap_tiny_first --variants exact,jitter
cache val runs/tap_tiny_first
stage runs/region_chat_tiny_lm/model "$PYTHON" -m finetune.pretrain_lm --config region_chat_tiny_lm
bridge region_chat_tiny_full region_chat_tiny_full
bridge region_chat_tiny_more region_chat_tiny_more
bridge region_chat_tiny_most region_chat_tiny_most
bridge region_chat_tiny region_chat_tiny_lora

# Then it learns to read the tokens of the better region tokenizer. The caches hold picture context, too, which this stage does
# not read.
all=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,same_kind,larger,side
all=$all,nearest,nearest,farthest,farthest,count_colour,count_colour,count_kind,count_kind
records train48 --split train --seed 5 --scenes 2560 --turns 48 --all_regions true --families $all
records packed64 --split train-packed --seed 5 --scenes 1024 --turns 64 --all_regions true --families $all
records val_context --split val --scenes 160 --turns 8 --all_regions true --families $all
for name in train48 packed64 val_context; do
  cache $name runs/tap_tiny --variants exact,jitter --image_regions 16 --context_from annotated
done
bridge region_chat_tiny_tokens region_chat_tiny_tokens

# The region tokenizer goes on, its tokens held near those that the bridge reads, and the bridge is told whose tokens it reads now.
tap tap_tiny_anchored
half runs/tap_tiny_anchored/model runs/tap_tiny_final
adopt runs/region_chat_tiny_tokens/model runs/tap_tiny_final runs/region_chat_tiny_adopted

# The bridge learns to compare kinds, and then to speak in conversations again.
known=kind,colour,size,place,caption,caption_place,same_colour,larger,side
kinds=same_kind,same_kind,same_kind,same_kind,statement,statement,statement,$known
records kinds_packed --split train-packed --seed 9 --scenes 2000 --turns 60 --all_regions true --families $kinds
records kinds_train --split train --seed 9 --scenes 1600 --turns 30 --all_regions true --families $kinds
records kinds_val --split val --seed 9 --scenes 320 --turns 8 --all_regions true --families $kinds
records pairs_val --split val --seed 10 --scenes 320 --turns 1 --all_regions true --families same_kind
cache kinds_packed runs/tap_tiny_final --variants exact,jitter
cache kinds_train runs/tap_tiny_final --variants exact,jitter
cache kinds_val runs/tap_tiny_final
cache pairs_val runs/tap_tiny_final
bridge region_chat_tiny_kinds region_chat_tiny_kinds
bridge region_chat_tiny_settled region_chat_tiny_settled
mix runs/region_chat_tiny_adopted 0.3 runs/region_chat_tiny_settled/model runs/region_chat_tiny_final

# More conversations; and another bridge goes on from there with the objects around a region in its context.
all=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,same_kind,larger,side
talks=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,larger,side
all=$all,nearest,nearest,farthest,count_colour,count_colour,count_kind,count_kind
counts=nearest,farthest,count_colour,count_colour,count_kind,count_kind
records counts_val --split val --seed 11 --scenes 320 --turns 2 --all_regions true --families $counts
records talks_val --split val --seed 12 --scenes 320 --turns 6 --all_regions true --families $talks
records mixed_packed --split train-packed --seed 11 --scenes 1500 --turns 80 --all_regions true --families $all
records mixed_train --split train --seed 11 --scenes 3600 --turns 30 --all_regions true --families $all
context="--image_regions 24 --context_from annotated --shard_size 256"
cache counts_val runs/tap_tiny_final $context
cache talks_val runs/tap_tiny_final $context
cache mixed_packed runs/tap_tiny_final --variants exact,jitter $context
cache mixed_train runs/tap_tiny_final --variants exact,jitter $context
bridge region_chat_tiny_talks region_chat_tiny_talks
bridge region_context_tiny region_context_tiny

# The region tokenizer's masks for longer, then its concept head; and both bridges on the tokens of that.
tap tap_tiny_longer
tap tap_tiny_concept
half runs/tap_tiny_concept/model runs/tap_tiny_named
records last_packed --split train-packed --seed 13 --scenes 900 --turns 80 --all_regions true --families $all
records last_train --split train --seed 13 --scenes 2000 --turns 30 --all_regions true --families $all
cache counts_val@named runs/tap_tiny_named $context
cache talks_val@named runs/tap_tiny_named $context
cache last_packed runs/tap_tiny_named --variants exact,jitter $context
cache last_train runs/tap_tiny_named --variants exact,jitter $context
bridge region_chat_tiny_last region_chat_tiny_last
bridge region_context_tiny_last region_context_tiny_last

# All four once more: masks judged at the frame's size, kinds counted.
tap tap_tiny_sharper
tap tap_tiny_sharper_concept
half runs/tap_tiny_sharper_concept/model runs/tap_tiny_sharpened
next=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,same_kind,larger,side
next=$next,nearest,nearest,nearest,farthest,farthest,count_colour,count_colour
next=$next,count_kind,count_kind,count_kind,count_kind,count_kind,count_kind
records next_packed --split train-packed --seed 15 --scenes 1800 --turns 110 --all_regions true --families $next
records next_train --split train --seed 15 --scenes 1500 --turns 36 --all_regions true --families $next
cache counts_val@sharpened runs/tap_tiny_sharpened $context
cache talks_val@sharpened runs/tap_tiny_sharpened $context
cache next_packed runs/tap_tiny_sharpened --variants exact,jitter $context
cache next_train runs/tap_tiny_sharpened --variants exact,jitter $context
bridge region_chat_tiny_sharper region_chat_tiny_sharper
bridge region_context_tiny_sharper region_context_tiny_sharper
bridge region_context_tiny_even region_context_tiny_even

# And again, on other scenes: masks for as long, captions of packed pictures, several questions about one region.
tap tap_tiny_sharpest
tap tap_tiny_sharpest_concept
half runs/tap_tiny_sharpest_concept/model runs/tap_tiny_finished
cache counts_val@finished runs/tap_tiny_finished $context
cache talks_val@finished runs/tap_tiny_finished $context
cache next_packed@finished runs/tap_tiny_finished --variants exact,jitter $context
cache next_train@finished runs/tap_tiny_finished --variants exact,jitter $context
bridge region_chat_tiny_finished region_chat_tiny_finished
bridge region_context_tiny_counted region_context_tiny_counted

# At last, more points, pictures that the bridges have not seen, and counts picked by their answers.
tap tap_tiny_points
mix_tap runs/tap_tiny_sharpest_concept/model 0.3 runs/tap_tiny_points/model runs/tap_tiny_points_mixed
tap tap_tiny_points_concept
half runs/tap_tiny_points_concept/model runs/tap_tiny_points_half
few="--offering count_kind=two,count_colour=two"
records few_val --split val --seed 17 --scenes 2000 --limit 240 --turns 12 --all_regions true $few --families count_colour,count_kind
records few_train --split train --seed 17 --scenes 9000 --limit 1500 --turns 40 --all_regions true $few \
  --families nearest,farthest,count_colour,count_kind
records more_train --split train --seed 18 --scenes 900 --turns 36 --all_regions true --families $next
records more_packed --split train-packed --seed 17 --scenes 1300 --turns 110 --all_regions true --families $next
cache talks_val@points runs/tap_tiny_points_half $context
cache few_val@points runs/tap_tiny_points_half $context
for name in few_train more_train more_packed; do
  cache $name@points runs/tap_tiny_points_half --variants exact,jitter $context
done
bridge region_chat_tiny_points region_chat_tiny_points
bridge region_context_tiny_balanced region_context_tiny_balanced

# And once more, half of it on objects that are shown smaller; the context bridge on more scenes with three of a kind.
tap tap_tiny_scaled
mix_tap runs/tap_tiny_points_concept/model 0.4 runs/tap_tiny_scaled/model runs/tap_tiny_scaled_mixed
tap tap_tiny_settled
mix_tap runs/tap_tiny_points_concept/model 0.2 runs/tap_tiny_settled/model runs/tap_tiny_settled_mixed
tap tap_tiny_settled_concept
half runs/tap_tiny_settled_concept/model runs/tap_tiny_settled_half
counts=nearest,farthest,count_colour,count_kind
records many_train --split train --seed 19 --scenes 60000 --limit 6000 --turns 40 --all_regions true $few --families $counts
records many_packed --split train-packed --seed 19 --scenes 1500 --turns 80 --all_regions true --families $counts
records more_scaled --split train-scaled --seed 17 --scenes 1000 --turns 110 --all_regions true --families $next
cache talks_val@settled runs/tap_tiny_settled_half $context
cache few_val@settled runs/tap_tiny_settled_half $context
for name in more_train more_packed; do
  cache $name@settled runs/tap_tiny_settled_half --variants exact,jitter $context
done
for name in more_scaled many_train many_packed; do
  cache $name@settled runs/tap_tiny_settled_half --variants jitter $context
done
bridge region_chat_tiny_scaled region_chat_tiny_scaled
bridge region_context_tiny_many region_context_tiny_many
# Scenes that are never drawn at their size: their objects have the tokens of others of the same caption.
made_up="--seed 21 --long_side 128 --all_regions true --families $counts"
records composed_train --split train --scenes 120000 --limit 12000 --turns 24 $few $made_up
records composed_packed --split train-packed --scenes 4000 --turns 48 $made_up
records composed_scaled --split train-scaled --scenes 2500 --turns 48 $made_up
for name in composed_train composed_packed composed_scaled; do compose $name; done
bridge region_context_tiny_composed region_context_tiny_composed

# The context bridge on other made-up scenes, which are also talked about.
spoken=kind,colour,size,place,caption,caption_place,statement,statement,same_colour,same_kind,larger,side
spoken=$spoken,nearest,nearest,farthest,farthest,count_colour,count_colour,count_kind,count_kind,count_kind
made_up="--seed 23 --long_side 128 --all_regions true"
records made_train --split train --scenes 200000 --limit 20000 --turns 24 $few $made_up --families $counts
records made_talks --split train --scenes 6000 --turns 36 $made_up --families $spoken
records made_packed --split train-packed --scenes 4000 --turns 100 $made_up --families $spoken
records made_scaled --split train-scaled --scenes 4000 --turns 100 $made_up --families $spoken
for name in made_train made_talks made_packed made_scaled; do compose $name; done
bridge region_context_tiny_made region_context_tiny_made
bridge region_context_tiny_settled region_context_tiny_settled
bridge region_context_tiny_followed region_context_tiny_followed
bridge region_context_tiny_later region_context_tiny_later

# What the package holds: runs/tap_tiny_settled_half as tap-tiny, region_chat_tiny_scaled as region-chat-tiny and, in float16,
# region_context_tiny_later as region-context-tiny; `region_tokenizer` in their processor_config.json is tap-tiny then.
