"""`python -m dsv4.tuner`: the same as `dsv4-tune`."""

from dsv4.tuner.cli import main

if __name__ == "__main__":
    main()
