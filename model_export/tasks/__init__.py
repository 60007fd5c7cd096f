"""Networks of other shapes than text, each a file: data, network, training, figures, picture."""
