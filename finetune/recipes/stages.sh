# What the scripts of the recipes share. They source it with their flags, which are those of a launcher: of torchrun, if the first one
# is --nproc_per_node, else of `accelerate launch`. The latter starts one process on CPUs, whatever it is told; torchrun starts as many
# as it is told, each with one thread unless OMP_NUM_THREADS says more.
PYTHON=${PYTHON:-.venv/bin/python}
case ${1:-} in
  "") launch=("$PYTHON" -m) ;;
  --nproc*) export ACCELERATE_USE_CPU=true && launch=("$PYTHON" -m torch.distributed.run --standalone "$@" -m) ;;
  *) launch=("$PYTHON" -m accelerate.commands.launch "$@" -m) ;;
esac

stage() { # stage RESULT COMMAND …: run the command unless its result is there
  if [ -e "$1" ]; then echo "$1 is there"; else shift && "$@"; fi
}
