"""``python -m dsv4.tuner`` is ``dsv4-tune``."""

from dsv4.generator.entry import enter


def main() -> None:
    enter("dsv4-tune", "dsv4.tuner.cli")


if __name__ == "__main__":
    main()
