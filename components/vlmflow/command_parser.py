"""Command lines that are wrong in one sentence."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser without the whole usage before what is wrong; of its subcommands too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
