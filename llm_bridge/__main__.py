"""`python -m llm_bridge` is `region-chat`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
