"""specbench measures speculative decoding: paired arms, intervals, a lossless verdict, counted rollbacks."""

__version__ = "0.1.0"
