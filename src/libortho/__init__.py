"""Language models in two streams: a public INT4 base and private streams behind a gate."""
