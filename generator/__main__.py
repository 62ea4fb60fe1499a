"""``python -m dsv4.generator`` is ``dsv4-gen``."""

from dsv4.generator.entry import enter


def main() -> None:
    enter("dsv4-gen", "dsv4.generator.cli")


if __name__ == "__main__":
    main()
