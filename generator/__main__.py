"""``python -m dsv4.generator`` is ``dsv4-gen``."""

from dsv4.generator.cli import main

main()
