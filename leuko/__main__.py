"""``leuko COMMAND``, which is the same as ``python -m leuko.COMMAND``."""

from .cli import console

if __name__ == "__main__":
    console()
