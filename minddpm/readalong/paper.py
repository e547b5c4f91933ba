"""The paper's contents: Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv 2006.11239.

Every numbered equation, algorithm, table and figure, and the sections.  Where the code and the tests of each are is not written
here: `minddpm paper` finds them by reading the sources (readalong/index.py).
"""

import re
from typing import NamedTuple

from minddpm.errors import UserError

# Short names, in the formulas below, for symbols that the paper sets in bold or puts a mark on.
MACROS = {"x": r"\mathbf{x}", "z": r"\mathbf{z}", "I": r"\mathbf{I}", "O": r"\mathbf{0}", "m": r"\boldsymbol{\mu}",
          "mt": r"\tilde{\boldsymbol{\mu}}", "e": r"\boldsymbol{\epsilon}", "S": r"\boldsymbol{\Sigma}", "ab": r"\bar{\alpha}",
          "bt": r"\tilde{\beta}", "N": r"\mathcal{N}", "E": r"\mathbb{E}", "KL": r"D_{\mathrm{KL}}", "xh": r"\hat{\mathbf{x}}",
          "n": r"\left\|", "nn": r"\right\|^2", "p": r"\,\|\,", "g": r"\,|\,"}
KINDS = {"eq": "Eq", "equation": "Eq", "alg": "Alg", "algorithm": "Alg", "table": "Table", "fig": "Fig", "figure": "Fig",
         "sec": "Sec", "section": "Sec", "app": "App", "appendix": "App"}


class Item(NamedTuple):
    """One thing that the paper numbers."""

    key: str                # "Eq. (7)", as it stands in docstrings
    section: str            # where in the paper: "3.2", "App. A"
    meaning: str            # in one line
    formula: str = ""       # a formula or a step of an algorithm a line, which goes on below a %; see `tex`
    no_code_because: str = ""           # why it has no code or no test of its own; tags in it refer to related code

    @property
    def token(self):
        """How a test's name spells the key: eq07, alg2, table4, fig6, sec33, appb."""
        return spell(*re.fullmatch(r"(\w+)\.? \(?([\w.]+)\)?", self.key).groups())

    @property
    def where(self):
        """The section that it stands in: "Sec. 3.2", "App. A", "Extra information"; "" for a section."""
        return f"Sec. {self.section}" if self.section[:1].isdigit() else self.section

    @property
    def tex(self):
        """The formula in LaTeX, a list of lines."""
        formula = self.formula.replace("%\n", "").strip()
        return re.sub(r"\\([A-Za-z]+)", lambda m: MACROS.get(m[1], m[0]), formula).splitlines()


def spell(kind, number):
    """("Eq", "7") -> "eq07", ("Sec", "3.3") -> "sec33", ("App", "B") -> "appb"."""
    return kind.lower() + (number.zfill(2) if kind == "Eq" else number.replace(".", "").lower())


def find(text):
    """The item that is written as "7", "eq07", "Eq. (7)", "alg 2", "table4", "Fig. 6", "sec 3.3" or "B"; None for other words.

    A bare number is an equation's, a bare letter an appendix's.  UserError: the paper has no item of that number.
    """
    match = re.fullmatch(rf"({'|'.join(KINDS)})?0*(\d+|[a-d])", re.sub(r"[\W_]", "", text.lower()))
    if not match:
        return None
    kind = KINDS[match[1]] if match[1] else "Eq" if match[2].isdigit() else "App"
    for item in ITEMS:
        if item.token == spell(kind, match[2]):
            return item
    raise no_such(text)


def no_such(text):
    """The error for a text that names no item: how items are written."""
    return UserError(f"the paper's index has no {text!r}; expected 7, eq 7, alg 2, table 4, fig 6, sec 3.3 or app B, or a word "
                     "of the list that `minddpm paper` prints")


_STEP = ": a step of App. A, with nothing more to compute"
_SAMPLES = ("samples of a network trained for days on eight TPU cores; `minddpm sample` draws such a grid, by Alg. 2, from "
            "any diffusers folder")

ITEMS = [
    Item("Eq. (1)", "2", "reverse process p_θ", r"""
p_\theta(\x_{0:T}) \coloneqq p(\x_T) \prod_{t=1}^{T} p_\theta(\x_{t-1} \g \x_t), \qquad p(\x_T) = \N(\x_T; \O, \I)
p_\theta(\x_{t-1} \g \x_t) \coloneqq \N\left(\x_{t-1}; \m_\theta(\x_t, t), \S_\theta(\x_t, t)\right)"""),
    Item("Eq. (2)", "2", "forward process q, one step", r"""
q(\x_{1:T} \g \x_0) \coloneqq \prod_{t=1}^{T} q(\x_t \g \x_{t-1})
q(\x_t \g \x_{t-1}) \coloneqq \N\left(\x_t; \sqrt{1 - \beta_t}\, \x_{t-1}, \beta_t \I\right)"""),
    Item("Eq. (3)", "2", "variational bound L on −log p_θ(x_0)", r"""
\E\left[-\log p_\theta(\x_0)\right] \le \E_q\left[-\log \frac{p_\theta(\x_{0:T})}{q(\x_{1:T} \g \x_0)}\right]
= \E_q\left[-\log p(\x_T) - \sum_{t \ge 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_t \g \x_{t-1})}\right] \eqqcolon L"""),
    Item("Eq. (4)", "2", "forward process, t steps at once", r"""
q(\x_t \g \x_0) = \N\left(\x_t; \sqrt{\ab_t}\, \x_0, (1 - \ab_t) \I\right)
\alpha_t \coloneqq 1 - \beta_t, \qquad \ab_t \coloneqq \prod_{s=1}^{t} \alpha_s"""),
    Item("Eq. (5)", "2", "the bound as L_T, L_{t−1} and L_0", r"""
\E_q\left[L_T + \sum_{t>1} L_{t-1} + L_0\right], \qquad L_T = \KL\left(q(\x_T \g \x_0) \p p(\x_T)\right)
L_{t-1} = \KL\left(q(\x_{t-1} \g \x_t, \x_0) \p p_\theta(\x_{t-1} \g \x_t)\right), \qquad L_0 = -\log p_\theta(\x_0 \g \x_1)"""),
    Item("Eq. (6)", "2", "posterior of the forward process", r"""
q(\x_{t-1} \g \x_t, \x_0) = \N\left(\x_{t-1}; \mt_t(\x_t, \x_0), \bt_t \I\right)"""),
    Item("Eq. (7)", "2", "posterior mean and variance", r"""
\mt_t(\x_t, \x_0) \coloneqq \frac{\sqrt{\ab_{t-1}}\, \beta_t}{1 - \ab_t} \x_0 %
+ \frac{\sqrt{\alpha_t}\, (1 - \ab_{t-1})}{1 - \ab_t} \x_t
\bt_t \coloneqq \frac{1 - \ab_{t-1}}{1 - \ab_t} \beta_t"""),
    Item("Eq. (8)", "3.2", "L_{t−1} as a distance of means", r"""
L_{t-1} = \E_q\left[\frac{1}{2\sigma_t^2} \n \mt_t(\x_t, \x_0) - \m_\theta(\x_t, t) \nn\right] + C"""),
    Item("Eq. (9)", "3.2", "the same, with x_0 from x_t and ε", r"""
L_{t-1} - C = \E_{\x_0, \e}\left[\frac{1}{2\sigma_t^2} \n \mt_t\left(\x_t(\x_0, \e), \frac{1}{\sqrt{\ab_t}} %
\left(\x_t(\x_0, \e) - \sqrt{1 - \ab_t}\, \e\right)\right) - \m_\theta(\x_t(\x_0, \e), t) \nn\right]""",
         "Eq. (8) at the x_0 that Eq. (15) gives for x_t and its noise: a step towards Eq. (12)"),
    Item("Eq. (10)", "3.2", "the same, its target in terms of ε", r"""
L_{t-1} - C = \E_{\x_0, \e}\left[\frac{1}{2\sigma_t^2} \n \frac{1}{\sqrt{\alpha_t}} %
\left(\x_t(\x_0, \e) - \frac{\beta_t}{\sqrt{1 - \ab_t}} \e\right) - \m_\theta(\x_t(\x_0, \e), t) \nn\right]""",
         "Eq. (9) with Eq. (7) worked out; its target is Eq. (11) with the noise itself: a step towards Eq. (12)"),
    Item("Eq. (11)", "3.2", "the mean μ_θ as a function of ε_θ", r"""
\m_\theta(\x_t, t) = \mt_t\left(\x_t, \frac{1}{\sqrt{\ab_t}} \left(\x_t - \sqrt{1 - \ab_t}\, \e_\theta(\x_t)\right)\right)
= \frac{1}{\sqrt{\alpha_t}} \left(\x_t - \frac{\beta_t}{\sqrt{1 - \ab_t}} \e_\theta(\x_t, t)\right)"""),
    Item("Eq. (12)", "3.2", "L_{t−1} as an error of the noise", r"""
\E_{\x_0, \e}\left[\frac{\beta_t^2}{2 \sigma_t^2 \alpha_t (1 - \ab_t)} %
\n \e - \e_\theta\left(\sqrt{\ab_t}\, \x_0 + \sqrt{1 - \ab_t}\, \e, t\right) \nn\right]"""),
    Item("Eq. (13)", "3.3", "discretised decoder", r"""
p_\theta(\x_0 \g \x_1) = \prod_{i=1}^{D} \int_{\delta_-(x_0^i)}^{\delta_+(x_0^i)} %
\N\left(x; \mu_\theta^i(\x_1, 1), \sigma_1^2\right) dx
\delta_+(x) = \begin{cases} \infty & \text{if } x = 1 \\ x + \frac{1}{255} & \text{if } x < 1 \end{cases}
\delta_-(x) = \begin{cases} -\infty & \text{if } x = -1 \\ x - \frac{1}{255} & \text{if } x > -1 \end{cases}"""),
    Item("Eq. (14)", "3.4", "the simplified loss L_simple", r"""
L_{\mathrm{simple}}(\theta) \coloneqq \E_{t, \x_0, \e}\left[ %
\n \e - \e_\theta\left(\sqrt{\ab_t}\, \x_0 + \sqrt{1 - \ab_t}\, \e, t\right) \nn\right]"""),
    Item("Eq. (15)", "4.3", "progressive estimate of x_0", r"""
\x_0 \approx \xh_0 = \frac{1}{\sqrt{\ab_t}} \left(\x_t - \sqrt{1 - \ab_t}\, \e_\theta(\x_t)\right)"""),
    Item("Eq. (16)", "4.3", "the bound with marginals of q", r"""
L = \KL\left(q(\x_T) \p p(\x_T)\right)
+ \E_q\left[\sum_{t \ge 1} \KL\left(q(\x_{t-1} \g \x_t) \p p_\theta(\x_{t-1} \g \x_t)\right)\right] + H(\x_0)"""),
    Item("Eq. (17)", "App. A", "the bound: Eq. (3), middle", r"""
L = \E_q\left[-\log \frac{p_\theta(\x_{0:T})}{q(\x_{1:T} \g \x_0)}\right]""", "Eq. (3)" + _STEP),
    Item("Eq. (18)", "App. A", "the bound: Eq. (3), right", r"""
= \E_q\left[-\log p(\x_T) - \sum_{t \ge 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_t \g \x_{t-1})}\right]""",
         "Eq. (3)" + _STEP),
    Item("Eq. (19)", "App. A", "its term t = 1 set apart", r"""
= \E_q\left[-\log p(\x_T) - \sum_{t > 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_t \g \x_{t-1})} %
- \log \frac{p_\theta(\x_0 \g \x_1)}{q(\x_1 \g \x_0)}\right]""", "the sum of Eq. (3) in another order" + _STEP),
    Item("Eq. (20)", "App. A", "Bayes' rule for q(x_t | x_{t−1})", r"""
= \E_q\left[-\log p(\x_T) - \sum_{t > 1} \log \left(\frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_{t-1} \g \x_t, \x_0)} \cdot %
\frac{q(\x_{t-1} \g \x_0)}{q(\x_t \g \x_0)}\right) - \log \frac{p_\theta(\x_0 \g \x_1)}{q(\x_1 \g \x_0)}\right]""",
         "Bayes' rule, by which Eq. (6) is tested" + _STEP),
    Item("Eq. (21)", "App. A", "the marginals telescope", r"""
= \E_q\left[-\log \frac{p(\x_T)}{q(\x_T \g \x_0)} %
- \sum_{t > 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_{t-1} \g \x_t, \x_0)} - \log p_\theta(\x_0 \g \x_1)\right]""",
         "Eq. (5) before the expectation is taken" + _STEP),
    Item("Eq. (22)", "App. A", "the bound: Eq. (5)", r"""
= \E_q\left[\KL\left(q(\x_T \g \x_0) \p p(\x_T)\right) + \sum_{t > 1} %
\KL\left(q(\x_{t-1} \g \x_t, \x_0) \p p_\theta(\x_{t-1} \g \x_t)\right) - \log p_\theta(\x_0 \g \x_1)\right]""",
         "Eq. (5), which is tested to be the same number as Eq. (3)" + _STEP),
    Item("Eq. (23)", "App. A", "the bound again: Eq. (3), right", r"""
L = \E_q\left[-\log p(\x_T) - \sum_{t \ge 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_t \g \x_{t-1})}\right]""",
         "Eq. (3)" + _STEP),
    Item("Eq. (24)", "App. A", "Bayes' rule without x_0", r"""
= \E_q\left[-\log p(\x_T) - \sum_{t \ge 1} \log \left(\frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_{t-1} \g \x_t)} \cdot %
\frac{q(\x_{t-1})}{q(\x_t)}\right)\right]""", "Bayes' rule, on the way to Eq. (16)" + _STEP),
    Item("Eq. (25)", "App. A", "the marginals telescope", r"""
= \E_q\left[-\log \frac{p(\x_T)}{q(\x_T)} - \sum_{t \ge 1} \log \frac{p_\theta(\x_{t-1} \g \x_t)}{q(\x_{t-1} \g \x_t)} %
- \log q(\x_0)\right]""", "Eq. (16) before the expectation is taken" + _STEP),
    Item("Eq. (26)", "App. A", "the bound: Eq. (16)", r"""
= \KL\left(q(\x_T) \p p(\x_T)\right) + \E_q\left[\sum_{t \ge 1} %
\KL\left(q(\x_{t-1} \g \x_t) \p p_\theta(\x_{t-1} \g \x_t)\right)\right] + H(\x_0)""",
         "Eq. (16), which is tested to be the same number as Eq. (3)" + _STEP),
    Item("Alg. 1", "3.2", "training", r"""
\textbf{repeat}
\qquad \x_0 \sim q(\x_0)
\qquad t \sim \mathrm{Uniform}(\{1, \ldots, T\})
\qquad \e \sim \N(\O, \I)
\qquad \text{gradient step on } \nabla_\theta \n \e - \e_\theta\left(\sqrt{\ab_t}\, \x_0 + \sqrt{1 - \ab_t}\, \e, t\right) \nn
\textbf{until} \text{ converged}"""),
    Item("Alg. 2", "3.2", "sampling", r"""
\x_T \sim \N(\O, \I)
\textbf{for } t = T, \ldots, 1 \textbf{ do}
\qquad \z \sim \N(\O, \I) \text{ if } t > 1, \text{ else } \z = \O
\qquad \x_{t-1} = \frac{1}{\sqrt{\alpha_t}} \left(\x_t - \frac{1 - \alpha_t}{\sqrt{1 - \ab_t}} \e_\theta(\x_t, t)\right) %
+ \sigma_t \z
\textbf{return } \x_0"""),
    Item("Alg. 3", "4.3", "sending x_0", r"""
\text{send } \x_T \sim q(\x_T \g \x_0) \text{ using } p(\x_T)
\textbf{for } t = T - 1, \ldots, 2, 1 \textbf{ do}
\qquad \text{send } \x_t \sim q(\x_t \g \x_{t+1}, \x_0) \text{ using } p_\theta(\x_t \g \x_{t+1})
\text{send } \x_0 \text{ using } p_\theta(\x_0 \g \x_1)"""),
    Item("Alg. 4", "4.3", "receiving x_0", r"""
\text{receive } \x_T \text{ using } p(\x_T)
\textbf{for } t = T - 1, \ldots, 1, 0 \textbf{ do}
\qquad \text{receive } \x_t \text{ using } p_\theta(\x_t \g \x_{t+1})
\textbf{return } \x_0"""),
    Item("Table 1", "4", "CIFAR10: bits/dim (IS, FID: no code)"),
    Item("Table 2", "4.2", "predictions and losses compared"),
    Item("Table 3", "Extra information", "LSUN 256×256: FID",
         no_code_because="FID needs the Inception network's weights; `minddpm sample --png-dir` writes what the FID tools read"),
    Item("Table 4", "Extra information", "lossy compression: rate and RMSE"),
    Item("Fig. 1", "1", "samples: CelebA-HQ 256×256, CIFAR10", no_code_because=_SAMPLES),
    Item("Fig. 2", "2", "the directed graphical model", no_code_because="a drawing of Eq. (1) and Eq. (2)"),
    Item("Fig. 3", "4.1", "samples: LSUN Church", no_code_because=_SAMPLES),
    Item("Fig. 4", "4.1", "samples: LSUN Bedroom", no_code_because=_SAMPLES),
    Item("Fig. 5", "4.3", "rate, distortion over reverse time"),
    Item("Fig. 6", "4.3", "progressive generation"),
    Item("Fig. 7", "4.3", "samples that share x_t"),
    Item("Fig. 8", "4.4", "interpolation"),
    Item("Fig. 9", "App. D", "interpolation, coarse to fine"),
    Item("Fig. 10", "App. D", "sample quality over reverse time"),
    Item("Fig. 11", "App. D", "samples: CelebA-HQ 256×256", no_code_because=_SAMPLES),
    Item("Fig. 12", "App. D", "CelebA-HQ: nearest training images"),
    Item("Fig. 13", "App. D", "samples: CIFAR10", no_code_because=_SAMPLES),
    Item("Fig. 14", "App. D", "progressive generation, more samples"),
    Item("Fig. 15", "App. D", "CIFAR10: nearest training images"),
    *(Item(f"Fig. {k}", "App. D", f"samples: LSUN {name}", no_code_because=_SAMPLES)
      for k, name in ((16, "Church"), (17, "Bedroom, large model"), (18, "Bedroom, small model"), (19, "Cat"))),
    Item("Sec. 2", "", "Background"),
    Item("Sec. 3", "", "Diffusion models and denoising autoencoders", no_code_because="Sec. 3.1, 3.2, 3.3 and 3.4"),
    Item("Sec. 3.1", "", "Forward process and L_T", no_code_because="q has no parameters, so L_T of Eq. (5) is a constant"),
    Item("Sec. 3.2", "", "Reverse process and L_1 to L_{T−1}"),
    Item("Sec. 3.3", "", "Data scaling, reverse process decoder, and L_0"),
    Item("Sec. 3.4", "", "Simplified training objective",
         no_code_because="Eq. (14), whose term t = 1 stands for L_0, and which weights small t less than Eq. (12)"),
    Item("Sec. 4", "", "Experiments"),
    Item("Sec. 4.1", "", "Sample quality", no_code_because="Table 1"),
    Item("Sec. 4.2", "", "Reverse process parameterization and training objective ablation", no_code_because="Table 2"),
    Item("Sec. 4.3", "", "Progressive coding"),
    Item("Sec. 4.4", "", "Interpolation"),
    Item("App. A", "", "Extended derivations", no_code_because="Eq. (3), (5) and (16), which are tested to be one number"),
    Item("App. B", "", "Experimental details"),
    Item("App. C", "", "Discussion on related work"),
    Item("App. D", "", "Samples", no_code_because="Fig. 9, 10, 12 and 14"),
]
