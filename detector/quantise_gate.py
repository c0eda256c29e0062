"""How many layers must stay in higher precision for the AP to hold: as few as possible, found in few measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import ExportError


@dataclass(frozen=True, slots=True)
class Trial:
    """One quantised network that was measured.

    Attributes:
        returned: How many of the most sensitive layers were in higher precision.
        ap: Its AP, 0 ... 1.
    """

    returned: int
    ap: float


def fewest_returned(measure: Callable[[int], float], *, least_ap: float, most: Callable[[], int]) -> Trial | None:
    """Double the number of layers in higher precision until the AP holds, then halve the distance to the last failure.

    AP need not rise with every layer, so the number found is one that was measured to hold, and nearly the fewest.

    Args:
        measure: AP with the so many most sensitive layers in higher precision.
        least_ap: AP that must be reached.
        most: Largest number of layers; asked only where it does not hold without any.

    Returns:
        The trial that holds with the fewest layers, or None.
    """
    ap = measure(0)
    if ap >= least_ap:
        return Trial(0, ap)
    failed, count, limit = 0, 1, most()
    while count <= limit and (ap := measure(count)) < least_ap:
        if count == limit:
            return None
        failed, count = count, min(limit, 2 * count)
    if count > limit:
        return None
    best = Trial(count, ap)
    while best.returned - failed > 1:
        middle = (failed + best.returned) // 2
        ap = measure(middle)
        if ap >= least_ap:
            best = Trial(middle, ap)
        else:
            failed = middle
    return best


def gate_error(best_ap: float, *, reference_ap: float, max_drop: float, reached: str) -> ExportError:
    """What to say where the AP cannot be kept.

    Args:
        best_ap: The best that was measured.
        reference_ap: AP in torch.
        max_drop: How much may be lost.
        reached: With which layers the best was reached.
    """
    return ExportError(
        f"int8 loses {100 * (reference_ap - best_ap):.2f} AP points at best (AP {100 * best_ap:.2f} instead of "
        f"{100 * reference_ap:.2f}), {reached}; expected at most {100 * max_drop:.2f}: try more calibration "
        "images, another --calibration, or a larger --max-drop"
    )
