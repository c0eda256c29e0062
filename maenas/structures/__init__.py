"""Published structures as data files: one JSON per network, in the structure format of `maenas.structure`."""
