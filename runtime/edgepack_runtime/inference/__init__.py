"""The code that judges a model and the code that serves it, which are the same code."""
