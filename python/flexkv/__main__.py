"""`python -m flexkv`: the `flexkv` command. Knows nothing of its subcommands."""

import sys

from flexkv._command import main

if __name__ == "__main__":
    sys.exit(main())
