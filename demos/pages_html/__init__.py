"""The read-along pages: HTML made of the sources, the paper's contents and the tests, for demos/pages.py."""
