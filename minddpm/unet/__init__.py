"""App. B.  The network: sizes, parameters, and the U-Net with its gradient."""

from minddpm.unet.network import Init, UNetConfig, init, parameters, time_mlp, unet

__all__ = ["Init", "UNetConfig", "init", "parameters", "time_mlp", "unet"]
