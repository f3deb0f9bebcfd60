"""Policies: from a view of requests and ranks to a plan. Pure: no clock, no IO, no torch."""
