"""``python -m longspan`` and the command ``longspan``: both begin here.

What a command imports takes half a second, so Ctrl-C is caught before that.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from longspan import cli
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
