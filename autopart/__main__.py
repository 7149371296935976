"""The command line as `python -m autopart` and `torchrun … -m autopart`."""

from autopart.cli.main import main

if __name__ == "__main__":
    main()
