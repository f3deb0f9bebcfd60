"""`tetriserve bench-overhead`: what serving costs on top of the bare model, both sides in one run."""
