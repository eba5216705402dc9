"""edgepack: packager."""
