"""edgepack: fleet."""
