"""The resource model: what a configuration takes, before anything is compiled."""
