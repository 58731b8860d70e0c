"""Benchmarks: every operation beside its reference, its peers and its floor; see README.md."""
