"""Generate text from a checkpoint: ``python -m dsv4.generate --help``."""

import io
import os
import sys

from dsv4.runtime.engine.command import main

if __name__ == "__main__":
    # Where other programs want the cores too, threads that spin at the end of each small operator wait for one another
    # many times longer than the work takes. OpenMP reads this when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character
    sys.exit(main())
