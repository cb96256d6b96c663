"""Choose: which layers are trained, by how they tell languages apart."""
