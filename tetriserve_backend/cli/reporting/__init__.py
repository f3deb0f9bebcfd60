"""Summaries and timelines as figures and a page."""
