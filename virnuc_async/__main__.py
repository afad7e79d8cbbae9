"""``python -m virnuc_async``: the command line."""

from virnuc_async.cli.main import run

if __name__ == "__main__":
    run()
