"""From a YAML spec to a compiled, checked kernel."""
