"""Predictions over HTTP: slots that hold models, and the protocols that ask them."""
