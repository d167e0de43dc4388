"""``leuko COMMAND``, which is the same as ``python -m leuko.COMMAND``."""

from typing import NoReturn

from .cli import leave, main


def console() -> NoReturn:
    """The entry point of the ``leuko`` command."""
    leave(main)


if __name__ == "__main__":
    console()
