"""The disk of a device: file changes that survive a power cut, and the bundles it keeps."""
