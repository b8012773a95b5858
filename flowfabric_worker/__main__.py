"""`python -m flowfabric_worker`: the command line."""

from flowfabric_worker.cli import main

if __name__ == "__main__":
    main()
