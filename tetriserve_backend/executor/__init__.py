"""The shell around the engine that runs segments on real ranks with xDiT."""
