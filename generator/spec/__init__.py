"""The spec: schema, strict loader, planning."""
