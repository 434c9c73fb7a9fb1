"""The command line: `bumble`. Light to import; each command's module is imported when that command is asked for."""

from bumblecore_core.cli.root import AppContext, app_of, bumble, main

__all__ = ["AppContext", "app_of", "bumble", "main"]
