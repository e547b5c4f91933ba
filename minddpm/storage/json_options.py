"""Options of a JSON file that others wrote, each checked as it is read: UserError names file, option, value and expectation."""

import sys

from minddpm.errors import UserError, printable

VERSION = "0.30.0"                  # of diffusers, in what we write: any that knows the names of today


def check(config, fixed, read, path):
    """Refuse every option that minddpm does not have.

    fixed: {option: (the only value that we have, the value that holds where the file leaves it out)}.  read: the options that
    are read elsewhere.  Names that begin with an underscore are diffusers' own notes.
    """
    for option, value in config.items():
        if option not in fixed and option not in read and not option.startswith("_"):
            raise UserError(f"{path}: option {printable(option)} ({shown(value)}) is unknown to minddpm")
    for option, (ours, default) in fixed.items():
        value = config.get(option, default)
        if value != ours:
            left_out = "" if option in config else ", diffusers' default, as the file leaves it out"
            raise UserError(f"{path}: {option} is {shown(value)}{left_out}; minddpm has {ours!r} only")


def whole(config, option, path, default=None, high=2**31 - 1):
    """A whole number in 1..high."""
    value = config.get(option, default)
    if type(value) is not int or not 1 <= value <= high:
        raise UserError(f"{path}: {option} is {shown(value)}; expected a whole number in 1..{high}")
    return value


def wholes(config, option, path, high=2**31 - 1):
    """A list of whole numbers in 1..high, at least one."""
    values = config.get(option)
    if not isinstance(values, list) or not values or not all(type(v) is int and 1 <= v <= high for v in values):
        raise UserError(f"{path}: {option} is {shown(values)}; expected a list of whole numbers in 1..{high}")
    return values


def number(config, option, path, default):
    """A finite number."""
    value = config.get(option, default)
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{path}: {option} is {shown(value)}; expected a number")
    return float(value)


def flag(config, option, path, default):
    """true or false."""
    value = config.get(option, default)
    if type(value) is not bool:
        raise UserError(f"{path}: {option} is {shown(value)}; expected true or false")
    return value


def choice(config, option, path, default, choices):
    """One of the names in choices, a dict, -> what it stands for."""
    value = config.get(option, default)
    if type(value) is not str or value not in choices:
        raise UserError(f"{path}: {option} is {shown(value)}; expected {' or '.join(choices)}")
    return choices[value]


def shown(value):
    """The value as a message shows it, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
