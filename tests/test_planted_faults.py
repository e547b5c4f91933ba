"""The gradient check can fail: every single factor of every hand-written gradient, wrong by 0.1 %, is found.

The sources of the pullbacks are compiled once more with each expression e written as fault(k, e), which is e, except for the one
k that is planted: 1.001 e.  Then come formulas that are wrong in the ways that people get them wrong.
"""

import ast
import importlib
import re
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import test_blocks
import test_fast_forms
import test_layers
import test_objective
import test_objective_table2
import test_unet
from gradcheck import Case, GradientError, by_path, check_gradient, compare, names_of, projections, read_only

import minddpm
from minddpm import tree

PACKAGE = Path(minddpm.__file__).parent
CASES = {name: case for tests in (test_layers, test_fast_forms, test_blocks, test_objective, test_objective_table2, test_unet)
         for name, case in tests.CASES.items()}
MODULES = sorted({case.module for case in CASES.values()})


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@cache
def numeric(name):
    if name in test_unet.CASES:
        return test_unet.numeric(name)
    case = CASES[name]
    return projections(case.f(), *case.args)


def check(name, f):
    check_gradient(f, *CASES[name].args, name=name, zero=CASES[name].zero, numeric=numeric(name))


# Each returned gradient wrong by 0.1 %


@pytest.mark.parametrize("name", CASES)
def test_each_returned_gradient_scaled(name):
    case = CASES[name]
    f, (dy, expected) = case.f(), numeric(name)
    args = [tree.map(read_only, arg) for arg in case.args]
    found = by_path(names_of(f, args), args, f(*args)[1](dy))
    compare(name, found, dy, expected, case.zero)
    for path in found.keys() - case.zero.keys():
        with pytest.raises(GradientError, match=f"gradient of {path}: "):
            compare(name, found | {path: 1.001 * found[path]}, dy, expected, case.zero)


# Each factor wrong by 0.1 %

ADJOINTS = {"col2im", "column_sums", "_tile", "_tiles_back"}       # helpers that only gradients use
SHAPES = {"shape", "ndim", "size", "dtype"}
MEMORY = ("np.empty", "_empty(")        # calls that answer with memory that is yet to be filled


class Planter(ast.NodeTransformer):
    """Writes every expression e inside a gradient as fault(k, e)."""

    def __init__(self):
        self.places, self.inside, self.buffers = [], False, set()

    def visit_FunctionDef(self, node):
        if self.inside or not (node.name.endswith("_back") or node.name in ADJOINTS):
            return self.generic_visit(node)
        self.inside = True
        self.buffers = {target.id for line in ast.walk(node) if isinstance(line, ast.Assign) for pair in _pairs(line)
                        for target, value in [pair] if ast.unparse(value).startswith(MEMORY)}
        node.body = [self.visit(line) for line in node.body]
        self.inside = False
        return node

    def visit_Expr(self, node):
        """A call for what it writes to its argument out: its value is no factor."""
        if self.inside and isinstance(node.value, ast.Call):
            node.value.args = [self.visit(arg) for arg in node.value.args]
        return node

    def visit(self, node):
        wanted = ast.BinOp | ast.UnaryOp | ast.Call | ast.Name | ast.Attribute | ast.Subscript
        if not self.inside or not isinstance(node, wanted):
            return super().visit(node)
        if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return node                                             # what is written to is no factor
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if isinstance(node, ast.Name | ast.Subscript) and names & self.buffers:
            return node                                             # nor is memory that is yet to be filled
        text, line = ast.unparse(node), node.lineno
        if text.startswith(("len(", "np.isinf(", *MEMORY)) or isinstance(node, ast.Attribute) and node.attr in SHAPES:
            return node                                             # nor are shapes, nor ±∞, whatever multiplies it
        if re.match(r"np\.\w+_like\(|_ones\(", text):
            pass                                                    # np.ones_like(rows): of rows only the shape matters
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):                # a method: the object, not the bound method, is a factor
                node.func.value = self.visit(node.func.value)
            node.args = [self.visit(arg) for arg in node.args]
        elif isinstance(node, ast.Subscript):
            node.value = self.visit(node.value)
        else:
            node = self.generic_visit(node)
        self.places.append(f"line {line}: {text}")
        return ast.Call(ast.Name("fault", ast.Load()), [ast.Constant(len(self.places) - 1), node], [])


def _pairs(assign):
    target, value = assign.targets[0], assign.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return [(t, v) for t, v in zip(target.elts, value.elts, strict=True) if isinstance(t, ast.Name)]
    return [(target, value)] if isinstance(target, ast.Name) else []


class Planted:
    """A module with fault(k, e) in its gradients."""

    def __init__(self, name):
        path, planter = importlib.import_module(name).__file__, Planter()
        code = compile(ast.fix_missing_locations(planter.visit(ast.parse(read(path)))), path, "exec")
        self.places, self.active, self.reached, self.run = planter.places, None, set(), set()
        self.module = types.ModuleType(name)
        self.module.fault = self.fault
        exec(code, self.module.__dict__)

    def fault(self, k, value):
        self.run.add(k)
        number = isinstance(value, float | np.floating) or isinstance(value, np.ndarray) and value.dtype.kind == "f"
        if number and np.any(value):
            self.reached.add(k)
            return value * 1.001 if k == self.active else value
        return value


@pytest.mark.parametrize("module", MODULES)
def test_each_factor_scaled(module):
    planted = Planted(module)
    tried = set()
    for name, case in CASES.items():
        if case.module != module:
            continue
        f, planted.active, planted.reached = case.f(planted.module), None, set()
        check(name, f)                                              # the planting itself changes nothing
        for k in sorted(planted.reached - tried):
            planted.active = k
            with pytest.raises(GradientError):
                check(name, f)
                pytest.fail(f"{name} does not see a factor 1.001 in {module}, {planted.places[k]}")
            tried.add(k)
    missed = [place for k, place in enumerate(planted.places) if k not in planted.run]
    assert not missed, f"no case runs {missed}"
    assert bool(tried) == bool(planted.places)
    print(f"{module}: {len(tried)} faults planted and found in {len(planted.places)} places")


def test_faults_are_planted_in_every_gradient():
    """No module is passed over, and the number of factors is of the order that one counts in the sources."""
    planted = {module: len(Planted(module).places) for module in MODULES}
    assert {"minddpm.unet.blocks", "minddpm.unet.network", "minddpm.objective", "minddpm.bound"} < set(planted)
    files = [path for folder in ("unet/layers", "fast") for path in (PACKAGE / folder).glob("*.py")]
    layers = {path.stem for path in files if "_back(" in read(path)}
    assert layers - {"cuda"} == {name.rsplit(".")[-1] for name in planted if ".layers." in name or ".fast." in name}
    assert planted["minddpm.unet.layers.swish"] == 8         # dy · (s + y · (1 − s)): four factors, four operations


# Wrong formulas: (module, case, what is written, what is written by mistake)

MUTANTS = [
    ("unet.layers.linear", "linear", "db = dy_rows.sum(axis=0)", "db = dy_rows.mean(axis=0)"),
    ("unet.layers.linear", "linear on pixels", "dw = rows.T @ dy_rows", "dw = rows[:-1].T @ dy_rows[:-1]"),
    ("unet.layers.norm", "group_norm groups=2", " - xhat * mean(dxhat * xhat)", ""),
    ("unet.layers.norm", "group_norm groups=2", "dxhat - mean(dxhat) -", "dxhat -"),
    ("unet.layers.norm", "group_norm groups=2", "dxhat = grouped(dy * gamma)", "dxhat = grouped(dy)"),
    ("unet.layers.norm", "group_norm groups=2", "xhat * mean(dxhat * xhat))", "xhat * (dxhat * xhat).mean())"),
    ("unet.layers.norm", "group_norm groups=2", "(dy * xhat.reshape", "(dy * centred.reshape"),
    ("unet.layers.norm", "norm_swish", "dn = swish_back(dy)", "dn = dy"),
    ("unet.layers.swish", "swish", "s + y * (1 - s)", "s + s * (1 - s)"),
    ("unet.layers.swish", "swish", "s + y * (1 - s)", "s + y"),
    ("unet.layers.attention", "attention", " - (do * o).sum(axis=-1, keepdims=True)", ""),
    ("unet.layers.attention", "attention", "dS = P * (", "dS = P * (1 - P) * ("),
    ("unet.layers.attention", "attention", "dv = np.matmul(P.swapaxes(1, 2), do)", "dv = np.matmul(P, do)"),
    ("unet.layers.attention", "attention", "dq = np.matmul(dS, k) * scale", "dq = np.matmul(dS, k)"),
    ("unet.layers.attention", "attention", "dk = np.matmul(dS.swapaxes(1, 2), q) * scale", "dk = np.matmul(dS, q) * scale"),
    ("unet.layers.conv", "conv2d k=3 stride=2 2x4x6", "x.shape, k, stride, pad)", "x.shape, k, stride, (1, 1))"),
    ("unet.layers.conv", "conv2d k=3 stride=2 2x4x6", "dw = im2col(x, k, stride, pad)", "dw = im2col(x, k, stride, (1, 1))"),
    ("unet.layers.conv", "conv2d k=3 stride=1 2x4x4", "dpadded[tap] += dpatches", "dpadded[tap] = dpatches"),
    ("unet.layers.conv", "conv2d k=3 stride=1 2x4x4", "dpatches[..., n * C:(n + 1) * C]", "dpatches[..., n::k * k]"),
    ("unet.layers.conv", "conv2d_plus", "dv = dy.sum(axis=(1, 2))", "dv = dy.mean(axis=(1, 2))"),
    ("unet.layers.upsample", "upsample", " + dy[:, 1::2, 1::2]", ""),
    ("unet.layers.upsample", "upsample", "return dy[:, ::2, ::2]", "return dy[:, 1::2, ::2]"),
    ("unet.layers.dropout", "dropout", "return dy * kept * scale", "return dy * kept"),
    ("unet.layers.dropout", "dropout", "return dy * kept * scale", "return dy"),
    ("fast.norm", "fast group_norm groups=2", " - xhat * mean(dxhat * xhat)", ""),
    ("fast.norm", "fast norm_swish groups=2", "q * d - r *", "-r *"),
    ("fast.norm", "fast norm_swish groups=2", "+ d * mean)", ")"),
    ("fast.norm", "fast norm_swish groups=2", "q = -r * r *", "q = -r *"),
    ("fast.norm", "fast norm_swish groups=2", "((gamma * mean) @ group_average)", "(gamma * mean)"),
    ("fast.norm", "fast norm_swish groups=2", "dn = 2 - rows(f[block])", "dn = 1 - rows(f[block])"),
    ("fast.winograd", "fast winograd m=2 2x4x8 training", "kept.append(V)", "kept.append(V[::-1])"),
    ("fast.winograd", "fast winograd m=4 1x5x3", "V.swapaxes(1, 2), dM", "V.swapaxes(1, 2)[::-1], dM"),
    ("fast.winograd", "fast winograd_plus m=2", "dv[block] = column_sums(dM[one]", "dv[block] = column_sums(dM[0]"),
    ("fast.winograd", "fast winograd_plus m=4", '"bias": dv.sum(axis=0)', '"bias": dv[0]'),
    ("fast.narrow_conv", "fast narrow_conv2d k=3", "(1, 2, 0, 3)[::-1, ::-1]", "(1, 2, 0, 3)"),
    ("fast.matmul", "fast linear, on pixels", "matmul_tn(rows, dy_rows)", "matmul_tn(rows[1:], dy_rows[1:])"),
    ("objective", "l_simple", "dloss * (2 / D)", "dloss / D"),
    ("objective", "l_simple", "difference = eps_theta - eps", "difference = eps - eps_theta"),
    ("objective", "mu-L-learned, mixed", "np.concatenate([dprediction, dlog_var], axis=-1)",
     "np.concatenate([dlog_var, dprediction], axis=-1)"),
    ("objective", "eps-L, mixed", "dprediction = mean_back(dmean)", "dprediction = dmean"),
    ("reverse", "mean_from eps", "-s.beta[t] / np.sqrt(s.alpha[t]", "s.beta[t] / np.sqrt(s.alpha[t]"),
    ("reverse", "mean_from eps", "np.sqrt(s.alpha[t] * (1 - s.alpha_bar[t]))", "np.sqrt(1 - s.alpha_bar[t])"),
    ("reverse", "mean_from x0", "posterior_coefficients(s, t)[0]", "posterior_coefficients(s, t)[1]"),
    ("reverse", "mean_from x0", "posterior_coefficients(s, t)", "posterior_coefficients(s, np.minimum(t + 1, s.T))"),
    ("reverse", "mean_from mu", "prediction, np.ones(np.shape(t))", "prediction, -np.ones(np.shape(t))"),
    ("bound", "bound_term", "dmean[first], dlog_var[first] = nll_back", "_, dlog_var[first] = nll_back"),
    ("bound", "bound_term", "dmean[first], dlog_var[first] = nll_back", "dmean[first], _ = nll_back"),
    ("bound", "bound_term", "nll_back(dnats[first])", "nll_back(dnats[:len(first)])"),
    ("bound", "kl_to", "(1 - (beta_tilde + difference**2) / var) / 2", "(1 - difference**2 / var) / 2"),
    ("bound", "kl_to", "(1 - (beta_tilde + difference**2) / var) / 2", "1 - (beta_tilde + difference**2) / var"),
    ("bound", "decoder_nll", "log_density(plus,  0, 1)", "log_density(np.where(np.isinf(plus), 0, plus), 0, 1)"),
    ("bound", "decoder_nll", "log_density(minus, 0, 1)", "log_density(np.where(np.isinf(minus), 0, minus), 0, 1)"),
    ("bound", "decoder_nll", "(r_plus * z_plus - r_minus * z_minus)", "(r_plus - r_minus)"),
    ("unet.blocks", "resblock C=N", "return dx + ds, dtemb, dp", "return dx, dtemb, dp"),
    ("unet.blocks", "resblock C=N", "temb_back(dht)", "temb_back(dht / 2)"),
    ("unet.blocks", "resblock C=N dropout", "da2 = drop_back(dd2) if drop_back else dd2", "da2 = dd2"),
    ("unet.blocks", "attention_block", "dnq + dnk + dnv", "dnq + dnv"),
    ("unet.blocks", "attention_block", "return dx + dy, dp |", "return dx, dp |"),
    ("unet.blocks", "down_block, downsample", "downsample_back(dh + doutputs.pop())", "downsample_back(doutputs.pop())"),
    ("unet.blocks", "down_block, downsample", "stage_back(dh + doutputs.pop())", "stage_back(doutputs.pop())"),
    ("unet.blocks", "down_block, downsample", "stage_back(dh + doutputs.pop())", "stage_back(dh + doutputs.pop(0))"),
    ("unet.blocks", "down_block, downsample",
     "dtemb = dtemb + dtemb_j\n            dstages.insert(0, dstage)\n        return dh, dtemb", "dtemb = dtemb_j\n"
     "            dstages.insert(0, dstage)\n        return dh, dtemb"),
    ("unet.blocks", "mid_block", "dtemb0 + dtemb1", "dtemb0"),
    ("unet.blocks", "mid_block", "[dstage0, dstage1]", "[dstage1, dstage0]"),
    ("unet.blocks", "up_block, top", "dskips.insert(0, dskip)", "dskips.append(dskip)"),
    ("unet.network", "unet, learned variance", "conv_in_back(dh + dskips.pop())", "conv_in_back(dh)"),
    ("unet.network", "unet, learned variance", "dskips += reversed(dused)", "dskips += dused"),
    ("unet.network", "unet, learned variance",
     "dh, dtemb_level, dp[\"mid_block\"] = mid_back(dh)\n        dtemb = dtemb + dtemb_level",
     "dh, dtemb_level, dp[\"mid_block\"] = mid_back(dh)"),
    ("unet.network", "time_mlp", "dh1 = act_1_back(da1)", "dh1 = da1"),
    ("unet.network", "time_mlp", "dh2 = act_2_back(dtemb)", "dh2 = dtemb"),
]


@pytest.mark.parametrize("module, name, right, wrong", MUTANTS)
def test_wrong_formula(module, name, right, wrong):
    path = importlib.import_module(f"minddpm.{module}").__file__
    source = read(path)
    assert right in source, f"{path} no longer has this line; plant the mistake in what stands there now"
    mutant = types.ModuleType(f"minddpm.{module}")
    exec(compile(source.replace(right, wrong), path, "exec"), mutant.__dict__)
    with pytest.raises(GradientError):
        check(name, CASES[name].f(mutant))


# Broken contracts


def double(p, x):
    return p["w"] * x, lambda dy: (dy * p["w"], {"w": dy * x})


def broken(name):
    """`double`, broken in one way."""
    calls = []

    def f(p, x):
        y, back = double(p, x)
        calls.append(name)
        if name == "writes to x":
            x *= 1
        if name == "no function":
            y = y + len(calls)

        def broken_back(dy):
            dx, dp = back(dy)
            calls.append(name)
            if name == "writes to dy":
                dy *= 1
            return {
                "key missing": (dx, {}),
                "key too many": (dx, dp | {"bias": dx}),
                "shape": (dx.sum(axis=0), dp),
                "broadcasts": (dx, {"w": dp["w"][None]}),
                "dtype": (dx.astype(np.float32), dp),
                "second call": (dx * (1 + 1e-9 * len(calls)), dp),
                "order": (dp, dx),
                "one result": (dx,),
            }.get(name, (dx, dp))
        return y, broken_back
    return f


@pytest.mark.parametrize("name, message", [
    ("writes to x", "writes to an argument"), ("writes to dy", "writes to an argument"),
    ("no function", "no function of its arguments"), ("second call", "second call of back"),
    ("key missing", r"missing or too many: \['p.w'\]"), ("key too many", r"missing or too many: \['p.bias'\]"),
    ("shape", "gradient of x is"), ("broadcasts", "gradient of p.w is"), ("dtype", "gradient of x is float32"),
    ("order", "missing or too many"), ("one result", "back returns 1 gradients, expected 2"),
])
def test_broken_contract(name, message):
    args = {"w": np.array([[1.0, 2.0], [3.0, -1.0]])}, np.array([[3.0, 4.0], [2.0, 5.0]])
    check_gradient(broken("nothing"), *args, name="double")
    with pytest.raises(GradientError, match=message):
        numbers = projections(double, *args)
        check_gradient(broken(name), *args, name=name, numeric=numbers)


def test_tiny_gradients_do_not_pass_and_a_zero_must_be_declared():
    x = np.array([0.3, -0.7])

    def tiny(wrong):
        return lambda x: (1e-8 * np.sin(x), lambda dy: 1e-8 * dy * np.cos(x) * wrong)

    def nothing(x):
        return 0 * x, lambda dy: 0 * dy

    check_gradient(tiny(1), x, name="tiny")
    for wrong in 1.001, 0, -1:
        with pytest.raises(GradientError):
            check_gradient(tiny(wrong), x, name="tiny")
    with pytest.raises(GradientError, match="relative error"):
        check_gradient(nothing, x, name="zero")
    check_gradient(nothing, x, name="zero", zero={"x": "f is constant"})
    for wrong in 1, 0:                                              # declared zero, but it is not
        with pytest.raises(GradientError, match="expected zero, I hope"):
            check_gradient(tiny(wrong), x, name="tiny", zero={"x": "I hope"})


def test_a_failure_names_layer_parameter_both_numbers_and_seed():
    case = Case("minddpm.unet.layers.linear", lambda m: m.linear, test_layers.CASES["linear"].args)

    def wrong(p, x):
        y, back = case.f()(p, x)
        return y, lambda dy: (back(dy)[0], {name: 1.001 * g for name, g in back(dy)[1].items()})

    number = r"-?\d+\.\d+"
    with pytest.raises(GradientError, match=rf"wrong: gradient of p.weight: analytic {number}, numeric {number} \(seed 4\): "
                                            r"relative error 9.99e-04"):
        check_gradient(wrong, *case.args, name="wrong", seed=4)
