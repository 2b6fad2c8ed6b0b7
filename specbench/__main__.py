"""`python -m specbench`: see specbench.cli."""

if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    import sys

    from specbench.cli import main

    sys.exit(main())
