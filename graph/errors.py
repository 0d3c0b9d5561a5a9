"""The error families. Each maps to one exit code of the command line."""

from pocketphi.graph.printable import one_line


class PocketphiError(Exception):
    """Base of every error that pocketphi raises on purpose."""

    exit_code = 3

    def __str__(self) -> str:
        """The message on one line, whatever the names of files in it hold: a line break in one is written as `\\n`."""
        return one_line(super().__str__())


class InputError(PocketphiError):
    """Bad input: what was expected, what came, where, what to do. Exit code 2."""

    exit_code = 2


class CannotRun(InputError):
    """What was asked is right, but this machine cannot run it: another system or CPU, a package or program that is missing."""


class CannotWrite(InputError):
    """A place that was to be written cannot be. why: where and for which reason; instead: what the user can do"""

    def __init__(self, why: str, instead: str) -> None:
        super().__init__(f"{why}; {instead}")
        self.why = why


class CheckFailed(PocketphiError):
    """A verification or a budget was not met. Exit code 1."""

    exit_code = 1


class CompilerBug(PocketphiError):
    """An invariant of ours is broken: nothing the user did wrong. Exit code 3."""
