"""edgepack: cli."""
