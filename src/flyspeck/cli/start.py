"""Where the command `flyspeck` begins: before anything else is imported, so that Ctrl-C is one line from the first moment on."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Runs the command line (`flyspeck.cli.main`); 130 where it is interrupted while that is still being loaded."""
    try:
        from flyspeck.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
