"""The durable calls of a handler, private: their rules, and how the exception of a step is kept."""
