"""python -m minddpm: the same program as the command minddpm."""

import sys

from minddpm.app.cli import main

sys.exit(main())
