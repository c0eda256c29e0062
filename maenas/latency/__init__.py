"""Latency tables: what one operator costs on one device, and where that figure comes from."""
