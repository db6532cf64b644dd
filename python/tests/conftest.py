"""Where the tests find the package: installed, or beside them in the checkout."""

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
if importlib.util.find_spec("flexkv") is None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
