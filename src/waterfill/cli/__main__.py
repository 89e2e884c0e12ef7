"""`python -m waterfill.cli` is the command `waterfill`."""

import sys

from waterfill.cli import main

sys.exit(main())
