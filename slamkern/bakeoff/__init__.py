"""A bake-off: what to train, compared on one base model with the same examples and questions for every choice."""
