"""From the paper to the line to the test: `minddpm paper` and the tables of minddpm/README.md; paper.py is the contents."""
