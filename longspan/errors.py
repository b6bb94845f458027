"""Every error that longspan raises for its caller.

    LongspanError
    ├── BadInput            a file, option, or text that cannot be used     exit 1
    │   ├── BadCheckpoint   a checkpoint that longspan cannot read
    │   ├── BadBundle       a bundle that is missing, damaged, or newer
    │   ├── BadMemory       a .span file that is damaged, newer, or of another model
    │   └── BadDocument     a document that is missing, empty, or not text
    ├── MissingExtra        a package that an optional part needs            exit 1
    ├── DoesNotFit          the plan is larger than the budget               exit 3
    ├── BudgetExceeded      the process held more than the budget            exit 3
    └── VerificationFailed  two implementations disagree beyond tolerance    exit 1

A message says what was asked, what was found, the rule, and the next step.
"""

from __future__ import annotations


class LongspanError(Exception):
    """Base of all errors that longspan raises on purpose."""

    exit_code: int = 1


class BadInput(LongspanError):
    """A file, option value, or text that cannot be used."""


class BadCheckpoint(BadInput):
    """A checkpoint that longspan cannot read."""


class BadBundle(BadInput):
    """A bundle that is missing, damaged, or written by a newer longspan."""


class BadMemory(BadInput):
    """A ``.span`` file that is damaged, newer, or belongs to another model."""


class BadDocument(BadInput):
    """A document that is missing, empty, or not UTF-8 text."""


class MissingExtra(LongspanError):
    """A package that an optional part of longspan needs is not installed."""

    def __init__(self, *, needed_for: str, package: str, extra: str) -> None:
        super().__init__(
            f"{needed_for} needs the package '{package}', which is not installed here. "
            f"Install it with: pip install 'longspan[{extra}]'"
        )


class DoesNotFit(LongspanError):
    """The plan needs more bytes than the budget gives."""

    exit_code = 3


class BudgetExceeded(LongspanError):
    """The process was seen to hold more bytes than the budget."""

    exit_code = 3


class VerificationFailed(LongspanError):
    """Two implementations that must agree differ by more than the tolerance."""
