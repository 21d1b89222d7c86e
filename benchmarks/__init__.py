"""Figures that anyone can measure again: `python -m benchmarks.<name>`."""
