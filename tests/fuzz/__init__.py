"""Hostile input: what comes from the bucket, from the network, over a socket or from a file is anything; each reader meets all of it here."""
