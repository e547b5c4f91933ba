"""App. B.  The sizes of a U-Net, and the five networks that have a name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """App. B.  The sizes of a U-Net.  Level i works on images of image_size / 2^i pixels with widths[i] channels.

    groups must divide every width.  With one channel a group, norm2 would cancel the timestep that is added before it, a
    constant on each channel's pixels: the small presets therefore have 8 groups.  Raises ValueError for impossible sizes.
    """

    image_size: int
    in_channels: int
    widths: tuple[int, ...]
    blocks: int                         # residual blocks a level; one more on the way up
    attention: tuple[int, ...]          # the levels whose residual blocks are followed by self-attention
    dropout: float = 0.0
    groups: int = 32
    eps: float = 1e-6                   # of the group normalisation: released code; TensorFlow's default
    learned_sigma: bool = False         # twice the output channels: the second half is the log-variance
    attention_up: tuple[int, ...] | None = None     # on the way up, where it is not as on the way down

    def __post_init__(self):
        levels = len(self.widths)
        if self.image_size % 2 ** (levels - 1):
            raise ValueError(f"image_size {self.image_size} cannot be halved {levels - 1} times for {levels} levels")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups {self.groups} does not divide every width of {self.widths}")
        if not set(self.attention) | set(self.up_attention) <= set(range(levels)):
            raise ValueError(f"attention names levels {self.attention}, {self.up_attention}; expected some of 0..{levels - 1}")
        if self.widths[0] % 2 or self.widths[0] < 4:
            raise ValueError(f"widths[0] is {self.widths[0]}; the timestep embedding needs an even number of at least 4")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")

    @property
    def up_attention(self):
        """The levels with self-attention on the way up."""
        return self.attention if self.attention_up is None else self.attention_up

    @property
    def out_channels(self):
        """The channels of the network's output."""
        return self.in_channels * (2 if self.learned_sigma else 1)

    @classmethod
    def tiny(cls, in_channels=1):
        """8×8 images (`digits`): 701 thousand parameters."""
        return cls(8, in_channels, widths=(32, 64), blocks=1, attention=(1,), groups=8)

    @classmethod
    def small(cls, in_channels=1):
        """16×16 images (`mnist16`, `faces16`)."""
        return cls(16, in_channels, widths=(32, 64, 64), blocks=1, attention=(1,), groups=8)

    @classmethod
    def medium(cls, in_channels=1):
        """28×28 images (`mnist`)."""
        return cls(28, in_channels, widths=(32, 64, 64), blocks=2, attention=(1,), groups=8)

    @classmethod
    def cifar10(cls, in_channels=3):
        """App. B.  32×32 images, attention at 16×16, dropout 0.1: the paper's 35,746,307 parameters."""
        return cls(32, in_channels, widths=(128, 256, 256, 256), blocks=2, attention=(1,), dropout=0.1)

    @classmethod
    def image256(cls, in_channels=3):
        """App. B.  256×256 images (LSUN, CelebA-HQ), attention at 16×16: the paper's 113,673,219 parameters."""
        return cls(256, in_channels, widths=(128, 128, 256, 256, 512, 512), blocks=2, attention=(4,))
