"""Training heads: objectives on cached vectors, one loop of epochs, dendrites by perforatedai."""
