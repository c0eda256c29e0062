"""Latency tables of new hardware: timing, networks, attribution of layer times, and the fit."""
