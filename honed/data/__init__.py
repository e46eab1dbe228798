"""Rows in, packed rows and masks out: read, templates, encode, batch, in this order; `prepare` does it all."""
