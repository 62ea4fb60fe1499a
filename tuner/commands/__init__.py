"""The commands of `dsv4-tune`, one a file."""
