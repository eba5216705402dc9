"""How a device becomes, and stays, a member of a fleet."""
