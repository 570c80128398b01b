"""The command line."""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its status: 0, or 2 where the user can mend something.

    Args:
        arguments: the words; None: those of the process.
    """
    # An exception in the middle of an import or in a callback of C code would end in a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from secateur.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once."""
    show_cursor = b"\x1b[?25h" if os.isatty(2) else b""
    os.write(2, show_cursor + b"interrupted\n")
    os._exit(INTERRUPTED)
