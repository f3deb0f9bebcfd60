"""What Triton loads: four models around one engine, and the settings of all layers."""
