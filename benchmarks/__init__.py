"""Measurements behind the README's numbers; each is `python -m benchmarks.<name>` from the project's root."""
