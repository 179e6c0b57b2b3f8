"""`python -m edgewatt.harness`: the command line, where its script is not on the PATH."""

from edgewatt.harness.entry import main

main()
