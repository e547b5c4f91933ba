"""Alg. 3 and 4 with real bits: minimal random coding, a range coder, and the progressive code that uses both."""

from minddpm.coding.progressive import Codec, calibrate, receive, respaced_schedule, send

__all__ = ["Codec", "calibrate", "receive", "respaced_schedule", "send"]
