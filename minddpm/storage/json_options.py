"""The options of a JSON file of diffusers.  Each UserError names the file, the option, its value and the expected one."""

import json

from minddpm.errors import UserError, printable

VERSION = "0.30.0"                  # of diffusers, in the files that we write: any version that has today's options
MAX_WHOLE = 2**20                     # a hostile file's numbers could otherwise fill the memory


class Options:
    """The options of one file: `given`, those in the file, and diffusers' defaults for the others.  path: for messages."""

    def __init__(self, given, defaults, path):
        self.given, self.values, self.path = given, defaults | given, path

    def read(self, option, is_valid, expected):
        """The option's value.  UserError unless is_valid(value); expected: the valid values in words."""
        value = self.values[option]
        if not is_valid(value):
            left_out = "" if option in self.given else ", diffusers' default, as the file leaves it out"
            raise UserError(f"{self.path}: {option} is {_shown(value)}{left_out}; expected {expected}")
        return value

    def whole(self, option, high=MAX_WHOLE):
        """A whole number in 1..high."""
        return self.read(option, lambda v: type(v) is int and 1 <= v <= high, f"a whole number in 1..{high}")

    def wholes(self, option):
        """A list of one or more whole numbers in 1..MAX_WHOLE."""
        return self.read(option, lambda v: isinstance(v, list) and v and all(type(n) is int and 1 <= n <= MAX_WHOLE for n in v),
                         f"a list of whole numbers in 1..{MAX_WHOLE}")

    def fraction(self, option):
        """A number in 0..1."""
        return self.read(option, lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number in 0..1")

    def choice(self, option, choices):
        """choices[name], where name is the option's value.  choices: a dict."""
        return choices[self.read(option, lambda v: type(v) is str and v in choices, " or ".join(choices))]

    def check(self, supported, ignored=()):
        """UserError unless each option has its value in `supported`.

        supported: the options that to_json makes of the object that was built from these.  ignored: options that may have any
        value, as may those that begin with an underscore, diffusers' own notes.
        """
        for option in self.values:
            if option in ignored or option.startswith("_"):
                continue
            if option not in supported:
                raise UserError(f"{self.path}: option {printable(option)} ({_shown(self.values[option])}) is unknown to minddpm")
            ours = supported[option]
            self.read(option, lambda v, ours=ours: v == ours, f"{_shown(ours)}, the only value that minddpm supports")


def check_class(config, path, *names):
    """UserError unless the _class_name in a JSON object of diffusers is one of the names."""
    if config.get("_class_name") not in names:
        raise UserError(f"{path}: _class_name is {_shown(config.get('_class_name'))}; expected {_shown(names[0])}")


def _shown(value):
    return printable(json.dumps(value), 100)
