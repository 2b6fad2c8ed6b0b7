"""`python -m specbench`: see specbench.front.cli."""

if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    import sys

    from specbench.front.cli import main

    sys.exit(main())
