"""`python -m ctxfs`: the command line, for a place where the installed `ctxfs` script is not on the PATH. Owns nothing."""

from ctxfs.edge.command import main

if __name__ == '__main__':
    main()
