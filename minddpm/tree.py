"""Trees of arrays: nested dicts and lists.  Parameters, gradients, Adam's moments and the EMA are the same kind of tree.

    {"conv_in": {"weight": w, "bias": b}, "down_blocks": [{"resnets": [...]}, ...]}

`flatten` names each leaf by its path, `down_blocks.0.resnets.1.conv1.weight`: the key names of diffusers' UNet2DModel.
"""

import numpy as np


def map(f, tree, *rest):
    """f applied to the leaves of one tree, or to the leaves at the same place of several; the same kind of tree."""
    if isinstance(tree, dict):
        return {k: map(f, tree[k], *(r[k] for r in rest)) for k in tree}
    if isinstance(tree, list):
        return [map(f, *leaves) for leaves in zip(tree, *rest, strict=True)]
    return f(tree, *rest)


def flatten(tree, path=""):
    """{"down_blocks.0.resnets.0.conv1.weight": leaf, ...}, in the order of the tree."""
    if isinstance(tree, dict):
        branches = tree.items()
    elif isinstance(tree, list):
        branches = enumerate(tree)
    else:
        return {path: tree}
    return {name: leaf for key, branch in branches for name, leaf in flatten(branch, f"{path}.{key}".lstrip(".")).items()}


def unflatten(flat):
    """The tree that `flatten` made `flat` of: a path's decimal numbers are places in a list, anything else a dict's key."""
    root = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return _lists(root)


def _lists(node):
    if not isinstance(node, dict):
        return node
    if node and all(key.isdecimal() for key in node):
        return [_lists(node[key]) for key in sorted(node, key=int)]
    return {key: _lists(child) for key, child in node.items()}


def leaves(tree):
    """The leaves in the order of `flatten`."""
    return list(flatten(tree).values())


def zeros_like(tree):
    """The same tree with every array zero."""
    return map(np.zeros_like, tree)
