"""`python -m llm_bridge` is `region-chat`."""

import sys

from .cli import main

sys.exit(main())
