"""The command ``bmex``: options, the level asked for, exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from bmex_bids.options import parse_options

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        0 when every requested run succeeded, 1 when one failed, 2 when the input or the options
        cannot be used (wrong options end in SystemExit with code 2), 128 and its number when a
        signal ended the program (130 Ctrl-C, 143 SIGTERM, 129 a closed terminal, 141 a closed
        pipe).
    """
    options = parse_options(argv)
    # Imported here, so that --help and errors in the options come at once.
    from bmex_bids.jobs import explain
    from bmex_bids.layout import InputError
    from bmex_bids.logs import printable
    from bmex_bids.run import run
    from bmex_bids.start import stopping

    try:
        with stopping():
            code = run(options)
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"bmex: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who read what is printed has gone, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MemoryError, OSError) as error:  # outside the runs, which explain theirs themselves
        print(f"bmex: error: {explain(error, options.output_dir)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        number = signal.Signals(error.args[0] if error.args else signal.SIGINT)
        said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
        print(f"bmex: {said}; the same command goes on with what is missing", file=sys.stderr)
        return 128 + number


if __name__ == "__main__":
    sys.exit(main())
