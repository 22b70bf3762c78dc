"""A fuzzer of everything that can be given to the programs of this project: `make hammer`."""
