"""A module an operator, of its name: ``cases``, ``judge``, ``first_wrong``, ``workload``, and the sizes of each."""
