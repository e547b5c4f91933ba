"""Alg. 3 and 4 with real bits: minimal random coding, a range coder, and the progressive code that is made of them."""
