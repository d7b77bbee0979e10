"""How fast it is: steps, streams and exports, measured with their conditions."""
