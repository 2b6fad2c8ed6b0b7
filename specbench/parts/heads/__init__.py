"""Trained heads: small modules that draft from the target's hidden states; their files, their loss, their rounding.

A new family is a subclass of `base.Heads`, in its method's file: training, loading and the checks find it through the method.
"""
