"""How good an encoder is, by measures that do not depend on how its text is cut into tokens."""
