"""maenas: from a device and a millisecond budget to a real-time object detector."""

__version__ = "0.1.0"
