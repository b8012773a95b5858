"""The graphs of flows: nodes, the results that they take from each other, and pictures of them."""
