"""Generate text from a checkpoint: ``python -m dsv4.generate --help``."""

import sys

from dsv4.runtime.engine.command import main

if __name__ == "__main__":
    sys.exit(main())
