"""Other kernels: Debian's images under qemu, with this checkout in them. See docs/kernels.md.

python -m tests.kernels [--kernel NAME] [--suite NAME] [--shape NAME]
"""
