"""Sampled inputs and outputs that stay on this device."""
