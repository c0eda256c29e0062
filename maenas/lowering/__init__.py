"""From a structure to the ordered list of deployed, fused operators; no torch."""
