"""The `flexkv` command. What it can do is written in Rust."""

import signal
import sys

from flexkv import _native


def main() -> int:
    """Runs the command with this process's arguments."""
    # The command ends by itself at Ctrl-C; Python would tell of it by a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _native.run_command(sys.argv[1:])
