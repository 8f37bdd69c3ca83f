"""Accuracy and speed on real scans; see docs/benchmarks.md."""
