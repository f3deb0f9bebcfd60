"""`tetriserve bench`: every policy on the same traces, live beside the simulator, or on the simulator alone."""
