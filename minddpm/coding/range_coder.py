"""A range coder: symbols to bytes and back, each in −log₂ of its probability, in exact integers (used by Alg. 3 and 4).

Sender and receiver must give every symbol the same probability to the last bit, or everything after it is decoded wrong.  So
the probabilities are whole numbers: a table is an increasing tuple (0, …, total), symbol k has the share table[k]..table[k+1],
and the arithmetic is that of Python's integers.  (The package `constriction` is faster and rounds more coarsely.)
"""

import math
from bisect import bisect_right

import numpy as np

BITS, REFILL = 64, 48               # width stays above 2⁴⁸, so totals up to 2²⁴ cost at most 2⁻²⁴ of a bit a symbol
TOTAL = 2**24                       # the total of a table: the least likely symbol costs 24 bits


def table(probabilities):
    """The table (0, …, TOTAL) for the probabilities of n symbols, on any positive scale; every share is at least 1.

    Every symbol first gets 1 of the total and the rest is divided in proportion, which costs at most log₂(1 + n/TOTAL) bits.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(probabilities)])
    n = len(cumulative) - 1
    return tuple((np.floor(cumulative / cumulative[-1] * (TOTAL - n)).astype(np.int64) + np.arange(n + 1)).tolist())


class Encoder:
    """Writes symbols: the message is a number in [low, low + width), in base 256; each symbol narrows that to its share."""

    def __init__(self):
        self.low, self.width, self.out = 0, 2**BITS, bytearray()
        self.bits = 0.0             # Σ −log₂ of the symbols' shares so far

    def put(self, symbol, table):
        """Write one symbol, 0..len(table) − 2."""
        self._narrow(table[symbol], table[symbol + 1] - table[symbol], table[-1])

    def put_number(self, value, n):
        """Write one of n <= 2²⁴ equally likely numbers, 0..n − 1."""
        self._narrow(value, 1, n)

    def _narrow(self, start, size, total):
        self.bits += math.log2(total / size)
        self.width //= total
        self.low += start * self.width
        self.width *= size
        while self.width < 2**REFILL:
            self._shift()

    def _shift(self):
        """Move the first byte of low to `out`; if low has overflowed, carry 1 into the bytes there."""
        carry, byte = divmod(self.low >> (BITS - 8), 256)
        if carry:
            k = len(self.out) - 1
            while self.out[k] == 255:
                self.out[k] = 0
                k -= 1
            self.out[k] += 1
        self.out.append(byte)
        self.low = (self.low << 8) % 2**BITS
        self.width <<= 8

    def finish(self):
        """Returns the message: the shortest number in the interval, at most `bits` / 8 + 2 bytes."""
        n = next(n for n in range(1, BITS // 8 + 1) if -self.low % 2 ** (BITS - 8 * n) < self.width)
        self.low += -self.low % 2 ** (BITS - 8 * n)
        for _ in range(n):
            self._shift()
        return bytes(self.out)


class Decoder:
    """Reads the symbols that an Encoder wrote.  `value` is the message's number minus low; bytes after the end count as 0."""

    def __init__(self, data):
        self.data, self.position = data, BITS // 8
        self.value, self.width = int.from_bytes(data[:BITS // 8].ljust(BITS // 8, b"\0"), "big"), 2**BITS
        self.bits = 0.0

    def get(self, table):
        """Read one symbol, 0..len(table) − 2."""
        symbol = bisect_right(table, self._target(table[-1])) - 1
        self._narrow(table[symbol], table[symbol + 1] - table[symbol], table[-1])
        return symbol

    def get_number(self, n):
        """Read one of n <= 2²⁴ equally likely numbers, 0..n − 1."""
        value = self._target(n)
        self._narrow(value, 1, n)
        return value

    def _target(self, total):
        return min(self.value // (self.width // total), total - 1)      # the minimum matters only if the message is damaged

    def _narrow(self, start, size, total):
        self.bits += math.log2(total / size)
        self.width //= total
        self.value -= start * self.width
        self.width *= size
        while self.width < 2**REFILL:
            byte = self.data[self.position] if self.position < len(self.data) else 0
            self.value, self.position = self.value << 8 | byte, self.position + 1
            self.width <<= 8
