"""App. B.  Upsampling."""


def upsample(x):
    """App. B.  Nearest-neighbour upsampling by 2.  x (B,H,W,C) -> y (B,2H,2W,C).

        y[b, 2h+i, 2w+j, c] = x[b, h, w, c]        for i, j in {0, 1}
    Back:  each pixel was copied four times, so its gradient is the sum of its copies' four.
    Keeps: nothing.
    """
    y = x.repeat(2, axis=1).repeat(2, axis=2)

    def upsample_back(dy):
        return dy[:, ::2, ::2] + dy[:, ::2, 1::2] + dy[:, 1::2, ::2] + dy[:, 1::2, 1::2]

    return y, upsample_back
