"""Latency tables for hardware that is not there, computed from the model's layers and a description of the GPU."""
