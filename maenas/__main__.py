"""`python -m maenas`."""

import sys

from maenas.cli.main import main

sys.exit(main())
