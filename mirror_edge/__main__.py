"""`python -m mirror_edge` is the program `mirror-edge`."""

from mirror_edge.apps.program import main

if __name__ == "__main__":
    main()
