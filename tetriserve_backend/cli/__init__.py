"""The command line: composition roots of server, clients' commands, simulation and benchmarks."""
