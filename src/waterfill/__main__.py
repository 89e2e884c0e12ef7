"""`python -m waterfill` is the command `waterfill`."""

import sys

from waterfill.cli import main

sys.exit(main())
