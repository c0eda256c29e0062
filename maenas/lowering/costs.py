"""What a list of operators costs on any device: parameters, MACs, FLOPs, memory, depth.

All functions accept operators whose channels are arrays, and then return arrays.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maenas.lowering.op import Channels, Op

PARAM_FORMS = ("folded", "reparameterised", "train")
FLOP_RULES = ("conv", "old", "new")
BYTES_PER_ELEMENT = 2
"""FP16, the precision of the shipped tables."""


def num_params(ops: Iterable[Op], form: str = "folded") -> Channels:
    """Learnable numbers of a network.

    Args:
        ops: Deployed operators.
        form: `folded` (deployed: every batch norm in a bias), `reparameterised` (3x3 + 1x1 branches fused, other batch
            norms kept) or `train` (as trained, both branches). A box scale counts as one number in every form.

    Raises:
        ValueError: Another form.
    """
    if form not in PARAM_FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(PARAM_FORMS)}")
    total: Channels = 0
    for op in ops:
        total = total + op.count * _op_params(op, form)
    return total


def _op_params(op: Op, form: str) -> Channels:
    if op.kind == "mul":
        return 1
    if op.kind != "conv":
        return op.weights
    bias = op.out_channels
    if form == "train" and op.reparam:
        pointwise = op.weights // op.kernel_size**2
        return op.weights + pointwise + 4 * bias
    keeps_norm = op.batch_norm and not op.reparam and form != "folded"
    return op.weights + (2 * bias if keeps_norm else bias)


def num_macs(ops: Iterable[Op]) -> Channels:
    """Multiply-accumulates of the convolutions, batch 1."""
    total: Channels = 0
    for op in ops:
        total = total + op.count * op.macs
    return total


def num_flops(ops: Iterable[Op], rule: str = "conv") -> Channels:
    """Floating-point operations, batch 1.

    Args:
        ops: Deployed operators.
        rule: `conv` (2 x MACs, the rule for new reports), or the published counters' rules on the re-parameterised
            model with its batch norms kept: `old` (+ 4 per batch-norm element) and `new` (+ 8 per element).

    Raises:
        ValueError: Another rule.
    """
    if rule not in FLOP_RULES:
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(FLOP_RULES)}")
    per_element = {"conv": 0, "old": 4, "new": 8}[rule]
    total: Channels = 0
    for op in ops:
        norm = per_element * op.out_elements if op.batch_norm and not op.reparam else 0
        total = total + op.count * (2 * op.macs + norm)
    return total


def activation_memory(ops: Iterable[Op], bytes_per_element: int = BYTES_PER_ELEMENT) -> Channels:
    """Bytes of the largest working set of one operator: its input, its output and a fused residual, batch 1.

    This is the memory a runtime cannot do without while that operator runs. Feature maps that wait for the neck
    meanwhile are not counted. Batch norm is folded; weights are not counted.
    """
    largest: Channels = 0
    for op in ops:
        live = op.in_elements + op.out_elements + (op.out_elements if op.residual else 0)
        # A count of 0 removes the operator; counts above 1 run one after another.
        largest = np.maximum(largest, np.minimum(op.count, 1) * live * bytes_per_element)
    return largest if np.ndim(largest) else int(largest)


def num_layers(ops: Iterable[Op]) -> Channels:
    """Depth: convolutions on the main path of the backbone (the paper's Depth column for res)."""
    total: Channels = 0
    for op in ops:
        if op.main_path:
            total = total + op.count
    return total
