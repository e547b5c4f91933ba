"""App. B.  The dense layer."""

from minddpm import device as backend


def linear(p, x):
    """App. B.  Dense layer.  weight (C,N), bias (N,), x (...,C) -> y (...,N).

        y = x W + b
    Back:  dx = dy Wᵀ,  dW = xᵀ dy,  db = Σ dy, where xᵀ and Σ run over all leading axes.
    Keeps: x.
    """
    w, b = p["weight"], p["bias"]
    rows = x.reshape(-1, w.shape[0])
    y = rows @ w + b

    def linear_back(dy):
        dy_rows = dy.reshape(-1, w.shape[1])
        dx = dy_rows @ w.T
        dw = rows.T @ dy_rows
        db = column_sums(dy_rows)
        return dx.reshape(x.shape), {"weight": dw, "bias": db}

    return y.reshape(*x.shape[:-1], w.shape[1]), linear_back


def column_sums(rows):
    """Σ over the rows of (…,M,N) -> (…,N), as the product 1ᵀ·rows: several times faster than sum(axis=-2)."""
    return backend.ones(rows.shape[-2], rows) @ rows
