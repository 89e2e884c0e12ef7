"""Decoders that write one token at a time from packed layers."""
