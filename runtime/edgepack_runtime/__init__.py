"""edgepack: runtime."""
