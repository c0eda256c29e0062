"""The detector package of maenas (network, training, deployment): bundled, not to be confused with a user's own."""

__bundled_by__ = "maenas"
