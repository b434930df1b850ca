"""The bundled state machines: plugins on the public hook like anyone's, with no privilege."""
