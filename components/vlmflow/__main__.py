"""`vlmflow`, and `python -m vlmflow`, the same."""

import os
import sys


def main() -> int:
    """Run the command line; in a container, below an init of our own."""
    if os.getpid() == 1:
        from vlmflow.init_process import become_init

        become_init()
    # Not at the top: it takes a second, in which the first process would be deaf.
    from vlmflow.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
