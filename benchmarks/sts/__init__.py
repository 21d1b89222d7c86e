"""The published STS Benchmark runs, measured again: `python -m benchmarks.sts --help`."""
