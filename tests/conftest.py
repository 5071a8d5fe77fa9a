"""Triton kernels run in Triton's interpreter, which must be said before anything imports triton.

Triton's own functions, such as tl.sum, are made for the interpreter or not when triton is first
imported, and transformers' models import it.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
