"""App. B.  The network: its sizes, its parameters, and the U-Net with its gradient, in plain layers."""

from minddpm.unet.config import UNetConfig
from minddpm.unet.network import unet
from minddpm.unet.parameters import init, parameters

__all__ = ["UNetConfig", "init", "parameters", "unet"]
