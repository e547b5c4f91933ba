"""The demo of Alg. 3 and 4: its smoke run, and its table of bits."""

import alg3_coding as demo
import numpy as np
from PIL import Image

from minddpm import coding
from minddpm.diffusion import Schedule


def test_alg3_alg4_demo_receives_what_it_sent(tmp_path, capsys):
    demo.main(["--smoke", "--out", str(tmp_path / "f.gif")])
    out = capsys.readouterr().out
    assert out.count("received bit for bit what was sent") == 2 and "SOMETHING ELSE" not in out
    with Image.open(tmp_path / "f.gif") as film:
        assert film.n_frames > 3


def test_sec43_report_adds_up():
    s, x0 = Schedule.linear(), demo.draw(3, 0, 0)
    times = demo.times_even_in_log_snr(s, 60, 8)
    s = coding.respaced_schedule(s, times)
    sent = coding.send(coding.calibrate(s, demo.best_eps(s), demo.draw(20, 0, 1), 256, clip=False), x0)
    text = demo.report(sent, times)
    lines = [line.replace("=", " ").replace("+", " ").replace(" x ", " ").split() for line in text.splitlines()]
    assert [line[0] for line in lines] == ["t", *map(str, times[::-1]), "0", "all"]
    values = np.array([line[1:] for line in lines[1:]], float)
    np.testing.assert_allclose(values[:-1, 1].sum(), values[-1, 1], atol=0.05)
    np.testing.assert_allclose(values[:, 1] - values[:, 0], values[:, 2], atol=0.011)
    np.testing.assert_allclose(values[-1, 1], sent.bits.sum() / 3, atol=0.01)
