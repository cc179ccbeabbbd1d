#!/bin/sh
# vLLM with a bridge's language model, and our server, which clients ask: two processes that end together.
#
#     sh docs/serve_with_vllm.sh my-bridge [flags of region-chat serve]
#
# vLLM listens on ENGINE_PORT (8001 by default), where only this machine can reach it. ENGINE is the command that starts it,
# before its flags: "vllm serve" if there is a command vllm, or else "python -m vllm.entrypoints.openai.api_server".
# A bridge that holds its own language model has it written to ENGINE_FOLDER, a new folder; by default, to one that is deleted
# at the end.
set -eu
if [ $# -eq 0 ]; then
  echo "Got no bridge: sh docs/serve_with_vllm.sh my-bridge" >&2
  exit 2
fi
bridge=$1
shift
port=${ENGINE_PORT:-8001}
module="python -m vllm.entrypoints.openai.api_server"
if [ -z "${ENGINE:-}" ]; then
  if command -v vllm >/dev/null; then ENGINE="vllm serve"; else ENGINE=$module; fi
fi
temporary="" engine="" server=""

finish() {
  trap '' INT TERM HUP
  for process in $server $engine; do
    kill "$process" 2>/dev/null || true
  done
  for process in $server $engine; do
    wait "$process" 2>/dev/null || true
  done
  [ -z "$temporary" ] || rm -rf "$temporary"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

pause() { # as sleep, but a signal ends it at once
  sleep 1 &
  wait $! || true
}

if [ -z "${ENGINE_FOLDER:-}" ]; then
  temporary=$(mktemp -d)
  ENGINE_FOLDER=$temporary/language_model
fi
command=$(region-chat vllm "$bridge" --port "$port" --output "$ENGINE_FOLDER")
arguments=${command#vllm serve }
case $ENGINE in
*api_server*) arguments="--model $arguments" ;; # the module takes no model by its place
esac
eval "$ENGINE $arguments &"
engine=$!
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
  if ! kill -0 "$engine" 2>/dev/null; then
    echo "vLLM ended before it answered; its own words are above." >&2
    exit 1
  fi
  pause
done
region-chat serve --model "$bridge" --upstream "http://127.0.0.1:$port/v1" "$@" &
server=$!
while kill -0 "$server" 2>/dev/null; do
  if ! kill -0 "$engine" 2>/dev/null; then
    echo "vLLM has ended, so the server ends, too; its own words are above." >&2
    exit 1
  fi
  pause
done
status=0
wait "$server" || status=$?
server=""
exit "$status"
