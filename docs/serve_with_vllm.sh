#!/bin/sh
# vLLM with a bridge's language model, and our server, which clients ask: two processes that end together.
#
#     sh docs/serve_with_vllm.sh my-bridge [flags of region-chat serve]
#
# vLLM listens on ENGINE_PORT (8001 by default), where only this machine can reach it.
set -eu
bridge=$1
shift
port=${ENGINE_PORT:-8001}
command=$(region-chat vllm "$bridge" --port "$port")
eval "$command &"
engine=$!
trap 'kill "$engine" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
  if ! kill -0 "$engine" 2>/dev/null; then
    echo "vLLM ended before it answered; its own words are above." >&2
    exit 1
  fi
  sleep 1
done
region-chat serve --model "$bridge" --upstream "http://127.0.0.1:$port/v1" "$@"
