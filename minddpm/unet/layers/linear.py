"""App. B.  The dense layer."""


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
        db = dy_rows.sum(axis=0)
        return dx.reshape(x.shape), {"weight": dw, "bias": db}

    return y.reshape(*x.shape[:-1], w.shape[1]), linear_back
