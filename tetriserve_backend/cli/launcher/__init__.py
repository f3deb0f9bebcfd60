"""Starts a real tritonserver with our model repository, watches it, and leaves nothing behind."""
