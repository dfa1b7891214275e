"""The version of this project, and of the package that is built from it."""

VERSION = "0.2.0"
