"""What the fleet service offers over HTTP: REST, a stream of changes, and the OCI pull API."""
