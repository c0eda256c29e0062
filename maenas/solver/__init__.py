"""Exact maximisation of a separable score along a chain of decisions under separable budgets."""
