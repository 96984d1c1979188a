"""Operators written for this project, one a file, each with its readable reference beside it."""
