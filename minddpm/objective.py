"""What the network is trained on, each loss with its gradient with respect to the network's output, by hand."""

import numpy as np


def l_simple(eps, eps_theta):
    """Eq. (14).  The loss of each image: the mean over its D numbers of (ε − ε_θ)².  eps, eps_theta (B, ...) -> loss (B,).

        L_simple = 1/D ‖ε − ε_θ‖²
    Back: dloss (B,) -> dε_θ = dloss · 2/D (ε_θ − ε).  With dloss = 1/B the gradient is that of the mean over the batch.

    The paper writes the squared norm; the mean over D (the released code's meanflat, nn.py:112) makes an untrained
    network's loss 1, whatever the size of the images, and only rescales the gradient.
    """
    difference = eps_theta - eps
    B, D = len(difference), difference[0].size
    flat = difference.reshape(B, D)
    loss = np.mean(flat * flat, axis=1)

    def l_simple_back(dloss):
        # ∂/∂ε_θ  1/D Σ_i (ε_θ,i − ε_i)²  =  2/D (ε_θ − ε)
        return (dloss * (2 / D)).reshape((B,) + (1,) * (difference.ndim - 1)) * difference

    return loss, l_simple_back


OBJECTIVES = {"simple": l_simple}
