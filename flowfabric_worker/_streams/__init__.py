"""The encoding of what the frames of streams hold, private."""
