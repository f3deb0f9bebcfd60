"""`tetriserve table`: look at latency tables, check them, compare them, make them."""
