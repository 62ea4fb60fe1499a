"""The commands of `dsv4-gen`, one file each."""
