"""Summaries as files; `sweep` and `bench` write them under the same names."""

BENCHMARK_NOTE = "bench.json"
"""The settings of a benchmark, which make a folder of summaries its own."""
