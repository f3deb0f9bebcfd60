"""Measuring what steps, encodes and decodes cost."""
