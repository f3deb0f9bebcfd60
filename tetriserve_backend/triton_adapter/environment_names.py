"""Environment variables by which the launcher speaks to the models."""

CONTROL_TOKEN_VARIABLE = "TETRISERVE_CONTROL_TOKEN"
"""The secret that `op=drain` must be given; without it nobody can drain the server over the network."""

IMPORT_PATH_VARIABLE = "TETRISERVE_IMPORT_PATH"
"""Folders that each `model.py` puts on `sys.path`, for a checkout that is not installed."""
