"""The device for whoever is at it: status, history, findings, the control socket."""
