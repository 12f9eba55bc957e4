"""Espalier: small vision transformers on small image data sets, with a CNN as the frame they grow against."""
