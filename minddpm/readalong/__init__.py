"""From the paper to the line to the test: the command `minddpm paper`; paper.py lists the paper's contents."""
