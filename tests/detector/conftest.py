"""Makes the `detector` package and this folder's helpers importable, wherever pytest is started.

Without the first line this folder, being on the search path as `tests/detector`, could be taken for the package.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]
