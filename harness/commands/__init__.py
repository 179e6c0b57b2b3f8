"""The commands of `edgewatt`, by what they are about: the one part of the harness that sees everything."""
