"""Jinja2 templates, one folder a family."""
