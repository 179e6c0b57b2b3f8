"""Where the `edgewatt` command starts: Ctrl-C ends it without a word until the command line can say something."""

import signal
import sys


def main() -> None:
    """Runs the command line and exits with its status."""
    if sys.argv[0].endswith("edgewatt"):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgewatt.harness.cli import main as command_line

    sys.exit(command_line())
