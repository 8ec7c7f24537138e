"""What runs on the device, written in Triton's language: a subset of Python without type annotations.

Names in capitals are known when a kernel is compiled.
"""
