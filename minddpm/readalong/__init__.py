"""From the paper to the line to the test and back: `minddpm paper`, its pages and the README's tables; paper.py is the paper."""
