"""`python -m vlmflow`, the same as `vlmflow`."""

import sys

from vlmflow.cli import main

sys.exit(main())
