"""Which bundled bridge answers where none is named, and which one does where that one's language model is missing."""

DEFAULT_BRIDGE = "region-chat-smollm2"
SMOLLM2 = "smollm2-135m"
"""The language model that it speaks through."""
SMALL_BRIDGE = "region-chat-tiny"
"""It holds its own language model, which knows little, and needs nothing else."""
