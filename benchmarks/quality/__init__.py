"""How good it is: variants of one model played beside each other."""
