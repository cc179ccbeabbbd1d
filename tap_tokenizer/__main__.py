"""`python -m tap_tokenizer` is `tap-tokenizer`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
