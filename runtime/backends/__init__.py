"""What a graph is played on."""
