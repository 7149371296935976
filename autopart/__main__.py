"""`python -m autopart` and `torchrun … -m autopart` are the command line."""

from autopart.cli import main

if __name__ == "__main__":
    main()
