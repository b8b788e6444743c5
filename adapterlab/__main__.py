"""`python -m adapterlab`, and so `accelerate launch -m adapterlab train RECIPE`."""

from adapterlab.cli import main

if __name__ == "__main__":
    main()
