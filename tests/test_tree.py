"""tree.py: nested dicts and lists of arrays, and their names."""

import numpy as np
import pytest

from minddpm import tree

TREE = {"conv_in": {"weight": np.array([[1.0, 2.0]]), "bias": np.array([3.0])},
        "down_blocks": [{"resnets": [{"w": np.array([4.0])}, {"w": np.array([5.0])}]}, {"resnets": [{"w": np.array([6.0])}]}],
        "out": np.array(7.0)}
NAMES = ["conv_in.weight", "conv_in.bias", "down_blocks.0.resnets.0.w", "down_blocks.0.resnets.1.w", "down_blocks.1.resnets.0.w",
         "out"]


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)


def test_flatten_names_leaves_by_their_path_in_the_trees_order():
    assert list(tree.flatten(TREE)) == NAMES
    assert tree.flatten(TREE)["down_blocks.0.resnets.1.w"] is TREE["down_blocks"][0]["resnets"][1]["w"]
    assert [leaf.ravel()[0] for leaf in tree.leaves(TREE)] == [1, 3, 4, 5, 6, 7]
    assert tree.flatten(7) == {"": 7}


def test_unflatten_is_the_inverse():
    assert same(tree.unflatten(tree.flatten(TREE)), TREE)
    backwards = dict(reversed(tree.flatten(TREE).items()))
    assert same(tree.unflatten(backwards), TREE)


def test_lists_of_more_than_ten_keep_their_order():
    long = {"blocks": [np.array(i) for i in range(12)]}
    shuffled = dict(sorted(tree.flatten(long).items()))
    assert list(shuffled)[2] == "blocks.10"                     # sorted as text
    assert same(tree.unflatten(shuffled), long)


def test_map_keeps_the_kind_and_goes_through_several_trees_together():
    doubled = tree.map(lambda a: 2 * a, TREE)
    assert same(tree.map(lambda a, b: b - a, TREE, doubled), TREE)
    assert same(tree.map(lambda a, b, c: a + b - c, TREE, TREE, TREE), TREE)
    assert TREE["out"] == 7


def test_map_refuses_trees_that_differ():
    with pytest.raises(KeyError, match="bias"):
        tree.map(np.add, {"weight": 1, "bias": 2}, {"weight": 1})
    for rest in [1], [1, 2, 3]:
        with pytest.raises(ValueError, match="zip"):
            tree.map(np.add, [1, 2], rest)


def test_size_zeros_and_sums():
    zeros = tree.zeros_like(tree.map(np.float32, TREE))
    assert same(zeros, tree.map(lambda a: 0 * a, TREE)) and all(leaf.dtype == np.float32 for leaf in tree.leaves(zeros))
