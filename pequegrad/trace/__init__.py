"""From user code to a Graph."""
