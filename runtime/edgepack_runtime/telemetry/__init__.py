"""What a device says of itself: windows of counts, and the spool that keeps them until heard."""
