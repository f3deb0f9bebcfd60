"""Families of models, each behind the interface of `base`."""
