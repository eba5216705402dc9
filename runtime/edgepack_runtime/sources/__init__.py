"""Where bundles come from: files of this machine and OCI registries."""
