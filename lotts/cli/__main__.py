"""``python -m lotts.cli``."""

import sys

from lotts.cli import main

sys.exit(main())
