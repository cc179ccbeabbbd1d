# The table of a GPU in one run, in bfloat16: the encoders of TAP-B, L and H, with their share of the measured rate of matrix
# products, and the tokens of 256 boxes beside the plain way. The decoder is the same in every size.
#
#     bash benchmarks/on_a_gpu.sh            # a few minutes; tables, numbers and figures in runs/on_a_gpu
#     bash benchmarks/on_a_gpu.sh --quick    # in miniature on the CPU: does it run?
#
# What we want: an encoder at 45 % of that rate or more, and tokens at least 3 times as fast as the plain way.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
out=${OUT:-runs/on_a_gpu}
if [ "${1:-}" = --quick ]; then
  flags=(--quick) sizes=(tiny)
else
  flags=(--device cuda --dtype bfloat16 --seconds 10) sizes=(b l h)
fi
for size in "${sizes[@]}"; do
  "$PYTHON" benchmarks/encode_picture.py "${flags[@]}" --size "$size" --compile --output "$out/$size"
done
"$PYTHON" benchmarks/region_tokens.py "${flags[@]}" --size "${sizes[0]}" --boxes 1 64 256 --output "$out/${sizes[0]}"
