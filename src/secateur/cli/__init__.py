"""The command line."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its status: 0, or 2 where the user can mend something.

    Args:
        arguments: the words; None: those of the process.
    """
    from secateur.cli.app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
