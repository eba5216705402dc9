"""The database of the fleet service: tables, migrations, and the one connection that writes."""
