"""What runs at serving time: kernel cache, dispatch, operators, references."""
