"""`python -m tap_tokenizer` is `tap-tokenizer`."""

import sys

from .cli import main

sys.exit(main())
