"""The layers of the comparison, cheapest first: one module each, from configuration (L0) to k-NN (L5)."""
