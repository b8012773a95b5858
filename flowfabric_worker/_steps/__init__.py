"""The rules of durable calls, and the encoding of the exceptions of steps, which are private."""
